package localstore_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

func TestValidOutputs(t *testing.T) {
	drv, out := nixtest.Derivation("fixed", nixtest.Node{Content: "output\n"})
	s := openStore(t, localstore.Under(tempDir(t)))
	im := s.NewImport(localstore.ImportOptions{})
	asked := []nix.StorePath{drv.Info.Path, nixtest.Chain(1).Top()}
	for _, step := range []struct {
		add  nixtest.Object
		want []nix.StorePath
	}{
		{drv, nil}, // its output is known, and not valid
		{out, []nix.StorePath{out.Info.Path}},
	} {
		err := im.Add(t.Context(), step.add.Info, bytes.NewReader(step.add.NAR), func(err error) {
			if err != nil {
				t.Error(err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := im.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		got, err := s.ValidOutputs(t.Context(), asked)
		if err != nil || !slices.Equal(got, step.want) {
			t.Errorf("after adding %s: outputs %v, %v; want %v", step.add.Info.Path, got, err, step.want)
		}
	}
	if err := im.Close(); err != nil {
		t.Error(err)
	}
}

package localstore_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// madeUpRealisation is one of p.
func madeUpRealisation(digit string, p nix.StorePath, dependencies ...*nix.Realisation) *nix.Realisation {
	drv, _ := nix.ParseHash("sha256:" + strings.Repeat(digit, 64))
	r := &nix.Realisation{ID: nix.DrvOutput{Drv: drv, Output: "out"}, Path: p, Dependencies: make(map[nix.DrvOutput]nix.StorePath)}
	for _, d := range dependencies {
		r.Dependencies[d.ID] = d.Path
	}
	return r
}

// TestRealisations registers realisations in tables of our own, and in those of the Nix
// that is installed, and deletes their paths.
func TestRealisations(t *testing.T) {
	for _, test := range []struct {
		name string
		make func(t *testing.T, root string)
	}{
		{"our tables", func(*testing.T, string) {}},
		{"Nix's tables", func(t *testing.T, root string) {
			harness.Need(t, "nix-store")
			run(t, "nix-store", "--store", root, "--extra-experimental-features", "ca-derivations", "--init")
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := tempDir(t)
			test.make(t, root)
			s, err := localstore.OpenOrCreate(t.Context(), localstore.Under(root))
			if err != nil {
				t.Fatal(err)
			}
			chain := nixtest.Chain(3)
			mustAdd(t, s, chain[0], chain[1])
			leaf := madeUpRealisation("1", chain[0].Info.Path)
			top := madeUpRealisation("2", chain[1].Info.Path, leaf)
			checkRegistration(t, s, leaf, top, chain[2].Info.Path)
			// Now each path is needed by a realisation of the other.
			if err := s.AddRealisation(t.Context(), madeUpRealisation("4", leaf.Path, top)); err != nil {
				t.Error(err)
			}
			for _, r := range []*nix.Realisation{leaf, top} {
				if known, err := s.Realisation(t.Context(), r.ID); err != nil || known.Text() != r.Text() {
					t.Errorf("%s is read as %v (%v)", r.Text(), known, err)
				}
			}
			if err := s.Close(); err != nil { // with its temporary roots
				t.Fatal(err)
			}
			s = openStore(t, localstore.Under(root))
			if _, err := s.Delete(t.Context(), []nix.StorePath{leaf.Path, top.Path}); err != nil {
				t.Error(err)
			}
			for _, r := range []*nix.Realisation{leaf, top} {
				if _, err := s.Realisation(t.Context(), r.ID); !errors.Is(err, nix.ErrNoRealisation) {
					t.Errorf("after the deletion of its path: %v", err)
				}
			}
		})
	}
}

// checkRegistration registers leaf and top, and what is refused: top before leaf, and both
// with a path that contradicts or is not valid.
func checkRegistration(t *testing.T, s *localstore.Store, leaf, top *nix.Realisation, absent nix.StorePath) {
	t.Helper()
	add := func(r *nix.Realisation) error { return s.AddRealisation(t.Context(), r) }
	if err := add(top); !errors.Is(err, nix.ErrNoRealisation) {
		t.Errorf("before its dependency: %v", err)
	}
	if err := add(madeUpRealisation("3", absent)); !errors.Is(err, nix.ErrNotValid) {
		t.Errorf("of a path that is not valid: %v", err)
	}
	key, err := nix.GenerateSecretKey("good-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(add(leaf), add(top), add(top)); err != nil {
		t.Error(err)
	}
	top.Sign([]nix.SecretKey{key})
	if err := add(top); err != nil {
		t.Error(err)
	}
	if err := add(madeUpRealisation("1", top.Path)); err == nil || !strings.Contains(err.Error(), leaf.Path.String()) {
		t.Errorf("with another path than before: %v", err)
	}
	if err := add(madeUpRealisation("2", top.Path, madeUpRealisation("1", top.Path))); err == nil {
		t.Error("a dependency leads to another path than before")
	}
}

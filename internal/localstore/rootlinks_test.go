package localstore_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// TestAddIndirectRoot makes a link that leads into the store a root, as a client of a
// daemon does with a link that he has made himself.
func TestAddIndirectRoot(t *testing.T) {
	root := tempDir(t)
	c := nixtest.Chain(3)
	fill(t, root, c...)
	s, err := localstore.Open(t.Context(), localstore.Under(root))
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(tempDir(t), "result")
	if err := os.Symlink(c[1].Info.Path.String(), link); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "result", "/tmp/../result"} {
		if err := s.AddIndirectRoot(t.Context(), bad); err == nil {
			t.Errorf("%q became a root", bad)
		}
	}
	for range 2 {
		if err := s.AddIndirectRoot(t.Context(), link); err != nil {
			t.Fatal(err)
		}
	}
	roots, err := s.Roots(t.Context())
	if err != nil || len(roots) != 1 || roots[link] != c[1].Info.Path {
		t.Errorf("Roots = %v, %v; want %s", roots, err, link)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	collectGarbage(t, root)
	s, err = localstore.Open(t.Context(), localstore.Under(root))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	valid, err := s.ValidPaths(t.Context(), c.Paths())
	if d := cmp.Diff(pathTexts(valid), pathTexts(c.Paths()[:2])); d != "" || err != nil {
		t.Errorf("after a collection (-got +want), %v:\n%s", err, d)
	}
}

func TestReferrers(t *testing.T) {
	s := openStore(t, localstore.Under(tempDir(t)))
	c := nixtest.Random(1, 30)
	mustAdd(t, s, c...)
	want := nixtest.NewStore(c...)
	for _, p := range append(c.Paths(), nixtest.Chain(1).Top()) {
		got, err := s.Referrers(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		referrers, _ := want.Referrers(t.Context(), p)
		if d := cmp.Diff(pathTexts(got), pathTexts(referrers)); d != "" {
			t.Errorf("%s (-got +want):\n%s", p, d)
		}
	}
}

// pathTexts are paths as cmp can compare them.
func pathTexts(paths []nix.StorePath) []string {
	texts := make([]string, len(paths))
	for i, p := range paths {
		texts[i] = p.String()
	}
	slices.Sort(texts)
	return texts
}

package localstore_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// TestAddTreeAsNix checks that trees without references get Nix's paths.
func TestAddTreeAsNix(t *testing.T) {
	harness.Need(t, "nix-store")
	root, nixRoot := tempDir(t), tempDir(t)
	s := openStore(t, localstore.Under(root))
	dir := tempDir(t)
	writeTree(t, dir, map[string]string{
		"file": "text\n", "empty-file": "", "empty/": "", "link": "->../anywhere",
		"tree/bin/tool": "#!/bin/sh\n", "tree/doc/..data": "x", "tree/link": "->bin/tool", "tree/sub/empty/": "",
		"large": strings.Repeat("0123456789", 300_000),
	})
	if err := os.Chmod(filepath.Join(dir, "tree/bin/tool"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", "empty-file", "empty", "link", "tree", "large"} {
		path := filepath.Join(dir, name)
		for range 2 {
			info, err := s.AddTree(t.Context(), "", path)
			if err != nil {
				t.Fatal(err)
			}
			if want := nixStore(t, nixRoot, "--add", path); info.Path.String() != want {
				t.Errorf("%s: path is %s, want %s", name, info.Path, want)
			}
		}
	}
	if info, err := s.AddTree(t.Context(), "other-name", filepath.Join(dir, "file")); err != nil || info.Path.Name() != "other-name" {
		t.Errorf("with a name: %v, %v", info, err)
	}
	expectTidy(t, root)
	verifyWithNix(t, root)
}

func TestAddTreeFindsReferences(t *testing.T) {
	root := tempDir(t)
	s := openStore(t, localstore.Under(root))
	c := nixtest.Chain(4)
	mustAdd(t, s, c...)
	dir := tempDir(t)
	absent := nixtest.Diamond().Top()
	writeTree(t, dir, map[string]string{
		"tree/script": strings.Repeat("x", 4000) + c[0].Info.Path.String() + "/bin/run",
		"tree/link":   "->" + c[1].Info.Path.String() + "/bin",
		"tree/hash":   "a" + c[2].Info.Path.HashPart() + "b",
		"tree/none":   absent.String() + c[3].Info.Path.HashPart()[:31],
	})
	info, err := s.AddTree(t.Context(), "", filepath.Join(dir, "tree"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, ref := range info.References {
		got = append(got, ref.String())
	}
	want := pathsOf(c[:3].Infos())
	slices.Sort(want)
	if d := cmp.Diff(got, want); d != "" {
		t.Errorf("references (-got +want):\n%s", d)
	}
	if err := info.CheckContentAddress(); err != nil {
		t.Error(err)
	}
	verifyWithNix(t, root)
}

func TestAddTreeRefuses(t *testing.T) {
	root := tempDir(t)
	s := openStore(t, localstore.Under(root))
	dir := tempDir(t)
	writeTree(t, dir, map[string]string{"bad name": "", "file": ""})
	if _, err := s.AddTree(t.Context(), "", filepath.Join(dir, "bad name")); err == nil {
		t.Error("a bad name is accepted")
	}
	if _, err := s.AddTree(t.Context(), "absent", filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
	if _, err := s.AddTree(t.Context(), "null", "/dev/null"); !errors.Is(err, nar.ErrSpecial) {
		t.Errorf("device: %v", err)
	}
	expectTidy(t, root)
}

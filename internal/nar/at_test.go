package nar_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"

	"github.com/copy-closure/copy-closure/internal/nar"
)

func TestIndex(t *testing.T) {
	root := makeTree(t)
	for _, name := range []string{"", "sizes/1048579", "modes/executable", "link", "empty", "many", "d"} {
		path := filepath.Join(root, name)
		want := dump(t, path)
		tree, err := nar.Index(t.Context(), path)
		check(t, err)
		if tree.Size() != int64(len(want)) {
			t.Errorf("%q: size %d, want %d", name, tree.Size(), len(want))
		}
		if got, err := io.ReadAll(io.NewSectionReader(tree, 0, tree.Size())); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%q: read as %d other bytes, %v", name, len(got), err)
		}
		if len(want) < 100<<10 { // it reads byte by byte
			if err := iotest.TestReader(io.NewSectionReader(tree, 0, tree.Size()), want); err != nil {
				t.Errorf("%q: %v", name, err)
			}
		}
		readAnywhere(t, tree, want)
		n := nar.NewReader(bytes.NewReader(want))
		for f := range tree.Files() {
			e := nextRegular(t, n)
			if f != *e {
				t.Errorf("%q: file %+v, want %+v", name, f, *e)
			}
		}
		check(t, tree.Close())
	}
}

// readAnywhere compares pieces of a tree with its archive, also such that cross
// words and files.
func readAnywhere(t *testing.T, tree *nar.Tree, want []byte) {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, 64<<10)
	for range 2000 {
		off := random.IntN(len(want))
		p := buf[:random.IntN(1<<random.IntN(16))]
		n, err := tree.ReadAt(p, int64(off))
		if n < len(p) && err != io.EOF || n == len(p) && err != nil && err != io.EOF {
			t.Fatalf("%d bytes at %d: read %d, %v", len(p), off, n, err)
		}
		if w := want[off:min(len(want), off+len(p))]; !bytes.Equal(p[:n], w) {
			t.Fatalf("%d bytes at %d: read %d, not those of the archive", len(p), off, n)
		}
	}
}

func nextRegular(t *testing.T, n *nar.Reader) *nar.Entry {
	t.Helper()
	for {
		e, err := n.Next()
		check(t, err)
		if e.Kind == nar.Regular {
			return e
		}
	}
}

func TestIndexAt(t *testing.T) {
	root := makeTree(t)
	dir, err := os.Open(root)
	check(t, err)
	tree, err := nar.IndexAt(t.Context(), dir, "many")
	check(t, err)
	check(t, dir.Close())
	want := dump(t, filepath.Join(root, "many"))
	readAnywhere(t, tree, want)
	check(t, tree.Close())
	if _, err := nar.IndexAt(t.Context(), dir, "../tree"); err == nil {
		t.Error("a name with a slash was taken")
	}
}

func TestIndexedFileChanges(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"shorter": func(path string) error { return os.Truncate(path, 3) },
		"longer":  func(path string) error { return os.Truncate(path, 30) },
		"link": func(path string) error {
			return errors.Join(os.Rename(path, path+".old"), os.Symlink(path+".old", path))
		},
		"directory": func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o755)) },
	} {
		root := t.TempDir()
		path := filepath.Join(root, "sub", "file")
		check(t, os.Mkdir(filepath.Dir(path), 0o755))
		check(t, os.WriteFile(path, []byte("0123456789"), 0o644))
		tree, err := nar.Index(t.Context(), root)
		check(t, err)
		check(t, change(path))
		if _, err := io.Copy(io.Discard, io.NewSectionReader(tree, 0, tree.Size())); err == nil {
			t.Errorf("%s: read without an error", name)
		} else if name != "link" && !errors.Is(err, nar.ErrChanged) {
			t.Errorf("%s: %v, want %v", name, err, nar.ErrChanged)
		}
		check(t, tree.Close())
	}
}

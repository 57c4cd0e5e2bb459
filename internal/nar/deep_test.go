package nar_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nar"
)

// makeTooDeep makes a tree in dir that ends with one level more than is allowed.
func makeTooDeep(t *testing.T, dir string) {
	t.Helper()
	name := strings.Repeat("d", 63) // 64 of them, with slashes between, have nar.MaxPath-1 bytes
	at, err := os.OpenRoot(dir)
	check(t, err)
	for range nar.MaxDepth {
		check(t, at.Mkdir(name, 0o755))
		next, err := at.OpenRoot(name)
		check(t, err)
		check(t, at.Close())
		at = next
	}
	check(t, at.Mkdir("dd", 0o755))
	check(t, at.Close())
	t.Cleanup(func() { check(t, nar.RemoveAll(dir)) })
}

// deepArchive has n directories, each in the one before, between two files.
func deepArchive(t *testing.T, n int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	check(t, w.Directory(""))
	for i := 1; i < n; i++ {
		dir := strings.Repeat("/d", i)[1:]
		above := strings.TrimSuffix(dir, "d")
		check(t, w.Regular(above+"a", false, 0))
		check(t, w.Directory(dir))
	}
	for i := n - 1; i > 0; i-- {
		check(t, w.Symlink(strings.Repeat("d/", i-1)+"z", "target"))
	}
	check(t, w.Close())
	return b.Bytes()
}

// TestDeep has more levels than files may be open.
func TestDeep(t *testing.T) {
	const levels = 500
	data := deepArchive(t, levels)
	dir := t.TempDir()
	limitFiles(t, 300) // a Dump may have read ahead in some 128 directories
	for _, workers := range []int{0, 1} {
		dest := filepath.Join(dir, "ours")
		check(t, nar.Restore(t.Context(), bytes.NewReader(data), dest, nar.RestoreOptions{Canonical: true, Workers: workers}))
		if !bytes.Equal(dump(t, dest), data) {
			t.Error("the tree has another archive")
		}
		size, err := nar.Size(t.Context(), dest)
		if err != nil || size != int64(len(data)) {
			t.Errorf("Size: %d, %v; want %d", size, err, len(data))
		}
		tree, err := nar.Index(t.Context(), dest)
		check(t, err)
		again, err := io.ReadAll(io.NewSectionReader(tree, 0, tree.Size()))
		if err != nil || !bytes.Equal(again, data) {
			t.Errorf("the Index has another archive, or %v", err)
		}
		check(t, tree.Close())
		if workers == 0 && !bytes.Equal(nixStore(t, nil, "--dump", dest), data) {
			t.Error("Nix makes another archive of the tree")
		}
		check(t, nar.RemoveAll(dest))
		if list, _ := os.ReadDir(dir); len(list) != 0 {
			t.Errorf("RemoveAll leaves %v", list)
		}
	}
	theirs := filepath.Join(dir, "theirs")
	nixStore(t, bytes.NewReader(data), "--restore", theirs)
	if !bytes.Equal(dump(t, theirs), data) {
		t.Error("the tree that Nix makes has another archive")
	}
	check(t, nar.RemoveAll(theirs))
}

// TestDeepMoved moves a directory away while a walk is far below it. The walk must not come
// back to another directory.
func TestDeepMoved(t *testing.T) {
	data := deepArchive(t, 300)
	dir := t.TempDir()
	elsewhere := filepath.Join(dir, "elsewhere")
	move := func(tree string) func() {
		inner := filepath.Join(tree, strings.Repeat("d/", 5))
		return func() {
			check(t, os.Mkdir(elsewhere, 0o755))
			check(t, os.Rename(inner, filepath.Join(elsewhere, "d")))
			check(t, os.Symlink(filepath.Join(elsewhere, "d"), inner))
		}
	}
	dest := filepath.Join(dir, "restored")
	half := &hookReader{r: bytes.NewReader(data), after: len(data) * 2 / 5, hook: move(dest)}
	err := nar.Restore(t.Context(), half, dest, nar.RestoreOptions{})
	if !errors.Is(err, nar.ErrChanged) {
		t.Errorf("Restore: %v, want ErrChanged", err)
	}
	if list, _ := os.ReadDir(elsewhere); len(list) != 1 {
		t.Errorf("Restore has written to another directory: %v", list)
	}
	check(t, nar.RemoveAll(elsewhere))
	check(t, nar.RemoveAll(dest))

	check(t, nar.Restore(t.Context(), bytes.NewReader(data), dest, nar.RestoreOptions{}))
	if err := nar.Dump(t.Context(), &hookWriter{hook: move(dest)}, dest); !errors.Is(err, nar.ErrChanged) {
		t.Errorf("Dump: %v, want ErrChanged", err)
	}
}

// TestDeepMemory reads as many levels as there may be, whose paths together are long.
func TestDeepMemory(t *testing.T) {
	data := deepArchive(t, nar.MaxPath/2)
	r := nar.NewReader(bytes.NewReader(data))
	before := heap()
	for range nar.MaxPath - 10 {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if used := heap() - before; used > 1<<20 {
		t.Errorf("%d bytes are in use at the deepest level", used)
	}
	runtime.KeepAlive(r)
}

func heap() int64 {
	var stats runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// A hookReader calls a function once it has given some bytes.
type hookReader struct {
	r     io.Reader
	after int
	hook  func()
}

func (h *hookReader) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	if h.after -= n; h.after < 0 && h.hook != nil {
		h.hook()
		h.hook = nil
	}
	return n, err
}

// A hookWriter calls a function with the first bytes that it gets.
type hookWriter struct{ hook func() }

func (h *hookWriter) Write(p []byte) (int, error) {
	if h.hook != nil {
		h.hook()
		h.hook = nil
	}
	return len(p), nil
}

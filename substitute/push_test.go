package substitute_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/internal/progress"
	"github.com/copy-closure/copy-closure/substitute"
)

// writer puts a closure into files.
func writer(files substitute.WritableFiles, closure nixtest.Closure) *substitute.Writer {
	return &substitute.Writer{
		Files: files, StoreDir: nixtest.Dir, Source: nixtest.NewStore(closure...), Compression: substitute.Zstd,
	}
}

// verify returns what is wrong with a cache.
func verify(t *testing.T, files substitute.Files) (v *substitute.Inventory, wrong []error) {
	t.Helper()
	cache := &substitute.Cache{Files: files, StoreDir: nixtest.Dir}
	v, err := cache.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Verify(t.Context(), true, nil, func(err error) { wrong = append(wrong, err) }); err != nil {
		t.Fatal(err)
	}
	return v, wrong
}

func TestPush(t *testing.T) {
	for _, compression := range []substitute.Compression{substitute.Zstd, substitute.None} {
		closure, dir := nixtest.Random(1, 60), substitute.Dir(t.TempDir())
		w := writer(dir, closure)
		w.Compression, w.Meter = compression, new(progress.Meter)
		key, err := nix.GenerateSecretKey("test-1")
		if err != nil {
			t.Fatal(err)
		}
		w.Keys = []nix.SecretKey{key}
		result, err := w.Push(t.Context(), closure.Infos())
		if err != nil || result.Pushed != len(closure) || result.Sent == 0 {
			t.Fatalf("got %+v, %v", result, err)
		}
		if s := w.Meter.State(); s.DonePaths != int64(len(closure)) || s.DoneBytes != s.TotalBytes || len(s.Active) > 0 {
			t.Errorf("progress ends with %+v", s)
		}
		v, wrong := verify(t, dir)
		if len(wrong) > 0 || len(v.Infos) != len(closure) {
			t.Errorf("%d paths, %v", len(v.Infos), wrong)
		}
		for _, n := range v.Sorted() {
			if keys := (nix.TrustedKeys{"test-1": key.Public()}); len(keys.Signers(&n.PathInfo)) != 1 {
				t.Errorf("%s is not signed", n.Path)
			}
			if _, err := fetch(t, dir, n.Path.HashPart()+".ls"); err != nil {
				t.Error(err)
			}
		}
		again, err := w.Push(t.Context(), closure.Infos())
		if want := (substitute.PushResult{Present: len(closure)}); err != nil || again != want {
			t.Errorf("again: %+v, %v", again, err)
		}
	}
}

// TestPushSigns signs what is there already, but not what another store has built.
func TestPushSigns(t *testing.T) {
	closure, dir := nixtest.Diamond(), substitute.Dir(t.TempDir())
	w := writer(dir, closure)
	if _, err := w.Push(t.Context(), closure.Infos()); err != nil {
		t.Fatal(err)
	}
	key, err := nix.GenerateSecretKey("test-1")
	if err != nil {
		t.Fatal(err)
	}
	w.Keys = []nix.SecretKey{key}
	infos := nixtest.Diamond().Infos()
	infos[3].NARHash = infos[2].NARHash
	for _, want := range []substitute.PushResult{{Present: 4, Signed: 3, Other: 1}, {Present: 4, Other: 1}} {
		if got, err := w.Push(t.Context(), infos); err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
	v, wrong := verify(t, dir)
	if n := v.Infos[infos[3].Path]; len(n.Signatures) != 0 || len(v.Infos[infos[0].Path].Signatures) != 1 || len(wrong) > 0 {
		t.Errorf("signatures %q, %v", n.Signatures, wrong)
	}
}

// limitedFiles lets a number of changes through, and then none.
type limitedFiles struct {
	substitute.Dir
	left atomic.Int64
}

var errFull = errors.New("no more changes")

func (f *limitedFiles) Put(ctx context.Context, name string, contents io.ReadSeeker, size int64) error {
	if f.left.Add(-1) < 0 {
		return errFull
	}
	return f.Dir.Put(ctx, name, contents, size)
}

func (f *limitedFiles) Place(ctx context.Context, file *os.File, name string) error {
	if f.left.Add(-1) < 0 {
		return errors.Join(errFull, file.Close(), os.Remove(file.Name()))
	}
	return f.Dir.Place(ctx, file, name)
}

// TestPushStopsAnywhere looks into the cache after each number of changes.
func TestPushStopsAnywhere(t *testing.T) {
	closure := nixtest.Diamond()
	steps := 1 + 3*len(closure) // nix-cache-info; for each path a listing, a NAR and a narinfo
	for n := range steps {
		files := &limitedFiles{Dir: substitute.Dir(t.TempDir())}
		files.left.Store(int64(n))
		w := writer(files, closure)
		if _, err := w.Push(t.Context(), closure.Infos()); !errors.Is(err, errFull) {
			t.Fatalf("after %d changes: %v", n, err)
		}
		for _, dir := range []string{"", "nar"} {
			if left, _ := filepath.Glob(filepath.Join(string(files.Dir), dir, ".copy-closure-*")); len(left) > 0 {
				t.Errorf("after %d changes: left are %q", n, left)
			}
		}
		if n > 0 {
			if _, wrong := verify(t, files); len(wrong) > 0 {
				t.Errorf("after %d changes: %v", n, wrong)
			}
		}
		files.left.Store(int64(steps))
		if _, err := w.Push(t.Context(), closure.Infos()); err != nil {
			t.Fatal(err)
		}
		if v, wrong := verify(t, files); len(wrong) > 0 || len(v.Infos) != len(closure) {
			t.Errorf("after %d changes and once more: %d paths, %v", n, len(v.Infos), wrong)
		}
	}
}

func TestPushRefuses(t *testing.T) {
	closure := nixtest.Chain(3)
	w := writer(substitute.Dir(t.TempDir()), closure)
	if _, err := w.Push(t.Context(), closure.Infos()[1:]); err == nil || !strings.Contains(err.Error(), "neither in the cache") {
		t.Errorf("without a reference: %v", err)
	}
	infos := closure.Infos()
	infos[1].NARHash = infos[2].NARHash
	if _, err := w.Push(t.Context(), infos); !errors.Is(err, nix.ErrDamaged) {
		t.Errorf("other contents: %v", err)
	}
	if v, _ := verify(t, w.Files); v.Infos[infos[1].Path] != nil || v.Infos[infos[2].Path] != nil {
		t.Error("a damaged path is there, or what refers to it")
	}
	if err := w.Files.Put(t.Context(), substitute.CacheInfoName, strings.NewReader("StoreDir: /x\n"), 13); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Push(t.Context(), closure.Infos()); err == nil || !strings.Contains(err.Error(), "/x") {
		t.Errorf("a cache for another store: %v", err)
	}
}

func TestCompressionCheckWritable(t *testing.T) {
	for _, c := range []struct {
		compression substitute.Compression
		level       int
		ok          bool
	}{
		{substitute.Zstd, 0, true}, {substitute.Zstd, 22, true}, {substitute.Zstd, 23, false}, {substitute.Zstd, -1, false},
		{substitute.None, 0, true}, {substitute.None, 1, false}, {substitute.Bzip2, 0, false}, {"", 0, false},
	} {
		if err := c.compression.CheckWritable(c.level); (err == nil) != c.ok {
			t.Errorf("%q, level %d: %v", c.compression, c.level, err)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if err := substitute.XZ.CheckWritable(0); err == nil || !strings.Contains(err.Error(), "install") {
		t.Errorf("without the program xz: %v", err)
	}
}

// TestInventoryDeleteForeignFile has a narinfo that claims another path's narinfo, or a
// file outside the cache, as its NAR.
func TestInventoryDeleteForeignFile(t *testing.T) {
	closure, dir := nixtest.Diamond(), substitute.Dir(t.TempDir())
	if _, err := writer(dir, closure).Push(t.Context(), closure.Infos()); err != nil {
		t.Fatal(err)
	}
	paths := closure.Paths()
	top, kept := paths[len(paths)-1], substitute.NARInfoName(paths[0])
	for _, url := range []string{kept, substitute.CacheInfoName, "../outside"} {
		v, _ := verify(t, dir)
		v.Infos[top].URL = url
		if _, err := v.Delete(t.Context(), []nix.StorePath{top}); err != nil {
			t.Errorf("delete a path with the URL %s: %v", url, err)
		}
		for _, name := range []string{kept, substitute.CacheInfoName} {
			if _, err := dir.Size(t.Context(), name); err != nil {
				t.Errorf("URL %s: %v", url, err)
			}
		}
		if _, err := writer(dir, closure).Push(t.Context(), closure.Infos()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestInventoryDelete(t *testing.T) {
	closure, dir := nixtest.Diamond(), substitute.Dir(t.TempDir())
	if _, err := writer(dir, closure).Push(t.Context(), closure.Infos()); err != nil {
		t.Fatal(err)
	}
	paths := closure.Paths()
	v, _ := verify(t, dir)
	for _, some := range [][]nix.StorePath{paths[:1], paths[:3], paths[1:3]} {
		if _, err := v.Delete(t.Context(), some); err == nil {
			t.Errorf("%v are deleted", some)
		}
	}
	slices.Reverse(paths)
	if freed, err := v.Delete(t.Context(), paths[:2]); err != nil || freed == 0 {
		t.Errorf("freed %d, %v", freed, err)
	}
	if v, wrong := verify(t, dir); len(v.Infos) != 2 || len(wrong) > 0 {
		t.Errorf("%d are left, %v", len(v.Infos), wrong)
	}
	if _, err := v.Delete(t.Context(), paths[:1]); !errors.Is(err, nix.ErrNotValid) {
		t.Errorf("deleted twice: %v", err)
	}
	if err := dir.Put(t.Context(), paths[2].HashPart()+".narinfo", strings.NewReader("x\n"), 2); err != nil {
		t.Fatal(err)
	}
	if v, wrong := verify(t, dir); len(wrong) != 1 {
		t.Errorf("a damaged narinfo: %v", wrong)
	} else if _, err := v.Delete(t.Context(), paths[3:]); err == nil {
		t.Error("a path is deleted to which one may refer whose narinfo is damaged")
	}
}

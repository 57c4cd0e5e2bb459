package localstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

var errLinkDown = errors.New("link is down")

// breakOff adds what comes of o's NAR before it breaks off.
func breakOff(t *testing.T, im *localstore.Import, o nixtest.Object, prefix io.Reader, upTo int) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	r := io.MultiReader(prefix, bytes.NewReader(o.NAR[:upTo]), iotest.ErrReader(errLinkDown))
	var verdict error
	if err := im.Add(ctx, o.Info, r, func(err error) { verdict = err }); !errors.Is(err, errLinkDown) || !errors.Is(verdict, errLinkDown) {
		t.Fatalf("got %v and %v", err, verdict)
	}
}

// resume adds o in a further import, which begins with what an earlier one has kept, and
// returns how much that was.
func resume(t *testing.T, s *localstore.Store, o nixtest.Object) (int64, error) {
	t.Helper()
	im := s.NewImport(localstore.ImportOptions{})
	defer im.Close()
	im.KeepPartials(nil)
	_, size := im.Partial(o.Info.Path)
	if size == 0 {
		t.Fatal("nothing was kept")
	}
	kept, err := im.OpenPartial(t.Context(), o.Info, size)
	if err != nil {
		return size, err
	}
	defer kept.Close()
	var verdict error
	err = im.Add(t.Context(), o.Info, io.MultiReader(kept, bytes.NewReader(o.NAR[size:])), func(err error) { verdict = err })
	return size, errors.Join(err, im.Flush(t.Context()), verdict)
}

// largeTree is a path with files of all sizes, which takes some megabytes.
func largeTree() nixtest.Object {
	files := map[string]nixtest.Node{"a": {Content: strings.Repeat("a\n", 1<<20)}, "link": {Target: "a"}}
	for i := range 50 {
		files[fmt.Sprintf("small-%02d", i)] = nixtest.Node{Content: strings.Repeat("s", i*1000), Executable: i%2 == 0}
	}
	files["z"] = nixtest.Node{Content: strings.Repeat("zzz\n", 1<<20), Executable: true}
	return nixtest.Source("large", nixtest.Node{Entries: files})
}

func partials(t *testing.T, root string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(root, "nix/var/nix/copy-closure/partial/*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestPartial(t *testing.T) {
	o := largeTree()
	for _, upTo := range []int{2 << 20, 3<<20 - 5, len(o.NAR) - 1} {
		root := tempDir(t)
		fill(t, root)
		s := openStore(t, localstore.Under(root))
		im := s.NewImport(localstore.ImportOptions{})
		im.KeepPartials(nil)
		breakOff(t, im, o, bytes.NewReader(nil), upTo)
		expectTidy(t, root)
		if err := im.Close(); err != nil {
			t.Error(err)
		}
		kept, err := resume(t, s, o)
		if err != nil || kept > int64(upTo) || kept < int64(upTo)-(256<<10) {
			t.Errorf("cut at %d: %d bytes were kept, %v", upTo, kept, err)
		}
		if left := partials(t, root); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		expectTidy(t, root)
		verifyWithNix(t, root)
	}
}

func TestPartialOfNoUse(t *testing.T) {
	o := largeTree()
	tests := []struct {
		name  string
		spoil func(tree string) error
	}{
		{"other contents", func(tree string) error {
			return errors.Join(os.Chmod(tree+"/a", 0o644), os.WriteFile(tree+"/a", bytes.Repeat([]byte("b\n"), 1<<20), 0o644))
		}},
		{"a file is missing", func(tree string) error { return os.Remove(tree + "/a") }},
		{"a file is shorter", func(tree string) error { return os.Truncate(tree+"/a", 5) }},
		{"a tree of another kind", func(tree string) error {
			return errors.Join(os.RemoveAll(tree), os.Symlink("/etc/passwd", tree))
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			root := tempDir(t)
			fill(t, root)
			s := openStore(t, localstore.Under(root))
			im := s.NewImport(localstore.ImportOptions{})
			im.KeepPartials(nil)
			breakOff(t, im, o, bytes.NewReader(nil), 3<<20)
			if err := errors.Join(im.Close(), test.spoil(partials(t, root)[0])); err != nil {
				t.Fatal(err)
			}
			if _, err := resume(t, s, o); err == nil {
				t.Error("it was good enough")
			}
			if left := partials(t, root); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
			expectTidy(t, root)
			mustAdd(t, s, o)
		})
	}
}

func TestPartialsAreBounded(t *testing.T) {
	root := tempDir(t)
	fill(t, root)
	s := openStore(t, localstore.Under(root))
	im := s.NewImport(localstore.ImportOptions{})
	im.KeepPartials(nil)
	for i := range 20 {
		o := nixtest.Source(fmt.Sprintf("large-%d", i), nixtest.Node{Content: strings.Repeat(fmt.Sprintf("%8d", i), 1<<18)})
		breakOff(t, im, o, bytes.NewReader(nil), len(o.NAR)-100)
		breakOff(t, im, o, bytes.NewReader(nil), len(o.NAR)/2+1000) // it had more before
		old := time.Now().Add(-time.Duration(i%2) * 8 * 24 * time.Hour)
		if err := os.Chtimes(partials(t, root)[0], old, old); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(partials(t, root)); n == 0 || n > 16 {
		t.Errorf("%d are kept", n)
	}
	if err := im.Close(); err != nil {
		t.Error(err)
	}
}

// TestPartialOnOtherMount has the state directory on another mount than the store, as
// on NixOS, and Nix collect garbage while the import is open.
func TestPartialOnOtherMount(t *testing.T) {
	harness.Need(t, "nix-store")
	root := tempDir(t)
	fill(t, root)
	state := filepath.Join(root, "nix/var/nix/copy-closure")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", state, "tmpfs", 0, ""); err != nil {
		harness.Unavailable(t, err)
	}
	defer unix.Unmount(state, unix.MNT_DETACH)
	s := openStore(t, localstore.Under(root))
	o := largeTree()
	im := s.NewImport(localstore.ImportOptions{})
	im.KeepPartials(nil)
	breakOff(t, im, o, bytes.NewReader(nil), 3<<20)
	for _, link := range partials(t, root) {
		if st, err := os.Lstat(link); err != nil || st.Mode()&os.ModeSymlink == 0 {
			t.Errorf("%s is no link, %v", link, err)
		}
	}
	collectGarbage(t, root)
	_, size := im.Partial(o.Info.Path)
	kept, err := im.OpenPartial(t.Context(), o.Info, size)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	content, err := io.ReadAll(kept)
	if err != nil || !bytes.HasPrefix(o.NAR, content) {
		t.Errorf("read %d bytes, %v", len(content), err)
	}
	if err := im.Close(); err != nil {
		t.Error(err)
	}
	if _, err := resume(t, s, o); err != nil {
		t.Error(err)
	}
	if left := partials(t, root); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	expectTidy(t, root)
	verifyWithNix(t, root)
}

func TestPartialOfOtherNAR(t *testing.T) {
	root := tempDir(t)
	fill(t, root)
	s := openStore(t, localstore.Under(root))
	im := s.NewImport(localstore.ImportOptions{})
	defer im.Close()
	im.KeepPartials(nil)
	o := largeTree()
	breakOff(t, im, o, bytes.NewReader(nil), 3<<20)
	other := *o.Info
	other.NARHash = nix.SHA256Hash([32]byte{1})
	if _, err := im.OpenPartial(t.Context(), &other, 1<<20); err == nil {
		t.Error("it is said to be kept")
	}
	if _, size := im.Partial(o.Info.Path); size == 0 {
		t.Error("what was kept is gone")
	}
}

// TestOldPartialsGo wants partial paths that are too old to be gone when the next
// import begins, also the newest, and nothing kept of a path that nobody vouches for.
func TestOldPartialsGo(t *testing.T) {
	o := nixtest.Source("big", nixtest.Node{Content: strings.Repeat("contents", 1<<18)})
	root := tempDir(t)
	fill(t, root)
	s := openStore(t, localstore.Under(root))
	kept := func() int {
		entries, _ := os.ReadDir(filepath.Join(root, "nix/var/nix/copy-closure/partial"))
		return len(entries)
	}
	im := s.NewImport(localstore.ImportOptions{})
	im.KeepPartials(func(*nix.PathInfo) bool { return false })
	breakOff(t, im, o, strings.NewReader(""), 3<<19)
	if n := kept(); n != 0 {
		t.Errorf("%d partial paths are kept of one that nobody vouches for", n)
	}
	im = s.NewImport(localstore.ImportOptions{})
	im.KeepPartials(func(*nix.PathInfo) bool { return true })
	breakOff(t, im, o, strings.NewReader(""), 3<<19)
	entries, err := filepath.Glob(filepath.Join(root, "nix/var/nix/copy-closure/partial/*"))
	if err != nil || len(entries) != 1 {
		t.Fatalf("kept: %v, %v", entries, err)
	}
	old := time.Now().Add(-30 * 24 * time.Hour)
	if err := os.Chtimes(entries[0], old, old); err != nil {
		t.Fatal(err)
	}
	small := nixtest.Source("small", nixtest.Node{Content: "x"})
	mustAdd(t, s, small)
	if n := kept(); n != 0 {
		t.Errorf("%d partial paths of a month ago are left after a further import", n)
	}
}

// TestNoSpace wants a NAR that cannot fit to be refused before it is read.
func TestNoSpace(t *testing.T) {
	o := nixtest.Source("endless", nixtest.Node{Content: "x"})
	info := *o.Info
	info.NARSize = 1 << 60
	root := tempDir(t)
	fill(t, root)
	s := openStore(t, localstore.Under(root))
	im := s.NewImport(localstore.ImportOptions{})
	defer im.Close()
	verdict := errors.New("undecided when the NAR is read")
	r := readerFunc(func([]byte) (int, error) {
		if !errors.Is(verdict, nix.ErrNoSpace) {
			t.Errorf("verdict is %v, want one of nix.ErrNoSpace", verdict)
		}
		return 0, io.ErrUnexpectedEOF
	})
	if err := im.Add(t.Context(), &info, r, func(err error) { verdict = err }); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Add returned %v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

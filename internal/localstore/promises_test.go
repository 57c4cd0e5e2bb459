package localstore_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// unaddressed is a path whose contents only its NAR hash vouches for.
func unaddressed(name string, size int, refs ...nix.StorePath) nixtest.Object {
	o := nixtest.Source(name, nixtest.Node{Content: strings.Repeat("x", size)}, refs...)
	info := *o.Info
	info.CA = ""
	return nixtest.Object{Info: &info, NAR: o.NAR}
}

// TestDamagedNAR flips a bit of a path that is unpacked from memory, and of one that is
// unpacked from its stream.
func TestDamagedNAR(t *testing.T) {
	s := openStore(t, localstore.Under(tempDir(t)))
	for _, size := range []int{1000, 1 << 20} {
		o := unaddressed("damaged", size)
		o.NAR = slices.Clone(o.NAR)
		o.NAR[bytes.IndexByte(o.NAR, 'x')+size/2] ^= 1
		verdicts := addAll(t, s.NewImport(localstore.ImportOptions{}), o)
		if err := verdicts[o.Info.Path.Base()]; !errors.Is(err, nix.ErrDamaged) {
			t.Errorf("%d bytes: error %v, want %v", size, err, nix.ErrDamaged)
		}
		if _, err := s.PathInfo(t.Context(), o.Info.Path); !errors.Is(err, nix.ErrNotValid) {
			t.Errorf("%d bytes: the path is valid (%v)", size, err)
		}
	}
}

// TestSyncBeforeRow wants contents to be on the disk before their row is in the database.
func TestSyncBeforeRow(t *testing.T) {
	s := openStore(t, localstore.Under(tempDir(t)))
	c := nixtest.Chain(3)
	synced := 0
	localstore.SetSync(s, func() error {
		synced++
		for _, p := range c.Paths() {
			if _, err := os.Lstat(s.RealPath(p)); err != nil {
				t.Errorf("before the contents: %v", err)
			}
		}
		valid, err := s.ValidPaths(t.Context(), c.Paths())
		if len(valid) > 0 || err != nil {
			t.Errorf("%d rows are there before (%v)", len(valid), err)
		}
		return nil
	})
	mustAdd(t, s, c...)
	if synced != 1 {
		t.Errorf("synced %d times, want once", synced)
	}
	failed := errors.New("the disk is gone")
	localstore.SetSync(s, func() error { return failed })
	o := nixtest.Random(3, 1)[0]
	if err := addAll(t, s.NewImport(localstore.ImportOptions{}), o)[o.Info.Path.Base()]; !errors.Is(err, failed) {
		t.Errorf("error %v, want %v", err, failed)
	}
}

// TestYieldedContentsReplaced has somebody replace the contents of a path while an import
// has given its lock up.
func TestYieldedContentsReplaced(t *testing.T) {
	s := openStore(t, localstore.Under(tempDir(t)))
	reference := nixtest.Chain(1)[0]
	referrer := unaddressed("referrer", 1000, reference.Info.Path)
	im := s.NewImport(localstore.ImportOptions{})
	verdicts := make(chan error, 2)
	add := func(o nixtest.Object) {
		if err := im.Add(t.Context(), o.Info, bytes.NewReader(o.NAR), func(err error) { verdicts <- err }); err != nil {
			t.Fatal(err)
		}
	}
	add(referrer)
	if err := im.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	localstore.YieldAll(im)
	path := s.RealPath(referrer.Info.Path)
	if err := errors.Join(nar.RemoveAll(path), os.WriteFile(path, []byte("other"), 0o444)); err != nil {
		t.Fatal(err)
	}
	add(reference)
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	first, second := <-verdicts, <-verdicts
	if err := errors.Join(first, second); !errors.Is(err, nix.ErrDamaged) {
		t.Errorf("verdicts %v and %v, want %v", first, second, nix.ErrDamaged)
	}
	if _, err := s.PathInfo(t.Context(), referrer.Info.Path); !errors.Is(err, nix.ErrNotValid) {
		t.Errorf("the replaced path is valid (%v)", err)
	}
}

// TestOpensFollowNoLink wants everything in a store to be opened without following a link
// that somebody may put there in that moment.
func TestOpensFollowNoLink(t *testing.T) {
	root := tempDir(t)
	calls := strace(t, helper("import", root), "openat")
	seen := 0
	for _, call := range calls {
		dir, rest, _ := strings.Cut(strings.TrimPrefix(call, "openat("), ", ")
		if !strings.Contains(dir, filepath.Join(root, "nix/store")) {
			continue
		}
		if seen++; !strings.Contains(rest, "O_NOFOLLOW") {
			t.Errorf("follows links: %s", call)
			break
		}
	}
	if seen == 0 {
		t.Error("nothing was opened: the test is no good")
	}
}

package localstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// slowDiskHelper imports 320 small paths into a store whose disk is slow, and 8 of many
// directories, where a process may open 256 files.
func slowDiskHelper(root string) error {
	return importSlowly(root, 256, manyFiles(), false)
}

// contendHelper is one of two processes that import the same, in opposite orders.
func contendHelper(root string) error {
	c := manyFiles()[:100]
	return errors.Join(importSlowly(root, 100, c, os.Getenv("REVERSE") != ""))
}

func manyFiles() nixtest.Closure {
	var c nixtest.Closure
	for i := range 320 {
		c = append(c, nixtest.Source(fmt.Sprint("small-", i), nixtest.Node{Content: fmt.Sprint(i)}))
	}
	for i := range 8 {
		tree := nixtest.Node{Entries: make(map[string]nixtest.Node)}
		for j := range 200 {
			tree.Entries[fmt.Sprint(j)] = nixtest.Node{Entries: map[string]nixtest.Node{"file": {Content: fmt.Sprint(i)}}}
		}
		c = append(c, nixtest.Source(fmt.Sprint("wide-", i), tree))
	}
	return c
}

func importSlowly(root string, files uint64, c nixtest.Closure, reverse bool) error {
	limit := syscall.Rlimit{Cur: files, Max: files}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	ctx := context.Background()
	s, err := localstore.OpenOrCreate(ctx, localstore.Under(root))
	if err != nil {
		return err
	}
	most := 0
	localstore.SetSync(s, func() error {
		time.Sleep(10 * time.Millisecond) // others have time to take locks
		most = max(most, openLocks())
		return nil
	})
	if reverse {
		slices.Reverse(c)
	}
	err = errors.Join(importAll(ctx, s, c), s.Close())
	if bound := localstore.MostLocks(); most > bound {
		err = errors.Join(err, fmt.Errorf("%d locks at once, the bound is %d", most, bound))
	}
	return err
}

// openLocks counts the locks that this process has open, where /proc tells.
func openLocks() int {
	n := 0
	files, _ := filepath.Glob("/proc/self/fd/*")
	for _, file := range files {
		if target, err := os.Readlink(file); err == nil && strings.HasSuffix(target, ".lock") {
			n++
		}
	}
	return n
}

// TestSlowDisk has an import read faster than the disk writes.
func TestSlowDisk(t *testing.T) {
	root := tempDir(t)
	runHelper(t, helper("slow disk", root))
	expectTidy(t, root)
	verifyWithNix(t, root)
}

// TestContend has two imports wait for each other's locks.
func TestContend(t *testing.T) {
	root := tempDir(t)
	var running sync.WaitGroup
	for _, reverse := range []string{"", "1"} {
		cmd := helper("contend", root)
		cmd.Env = append(cmd.Env, "REVERSE="+reverse)
		running.Go(func() { runHelper(t, cmd) })
	}
	running.Wait()
	expectTidy(t, root)
	verifyWithNix(t, root)
}

// TestSweepUnlocked has imports end that have given a path's lock up: one that was killed,
// and one that could not take it back.
func TestSweepUnlocked(t *testing.T) {
	root := tempDir(t)
	s, err := localstore.OpenOrCreate(t.Context(), localstore.Under(root))
	if err != nil {
		t.Fatal(err)
	}
	im := s.NewImport(localstore.ImportOptions{})
	c := nixtest.Chain(2)
	referrer := c[1] // cannot be registered without c[0]
	verdict := make(chan error, 1)
	if err := im.Add(t.Context(), referrer.Info, bytes.NewReader(referrer.NAR), func(err error) { verdict <- err }); err != nil {
		t.Fatal(err)
	}
	if err := im.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	localstore.YieldAll(im)
	// Somebody else's import leaves a living process alone.
	fill(t, root, nixtest.Random(3, 1)...)
	if _, err := os.Lstat(s.RealPath(referrer.Info.Path)); err != nil {
		t.Fatalf("contents of a living import: %v", err)
	}
	// A directory in the lock's place keeps us from taking it back.
	lock := s.RealPath(referrer.Info.Path) + ".lock"
	if err := os.Mkdir(lock, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-verdict; !errors.Is(err, nix.ErrNotValid) {
		t.Errorf("error %v, want %v", err, nix.ErrNotValid)
	}
	if err := errors.Join(s.Close(), os.Remove(lock)); err != nil {
		t.Fatal(err)
	}
	fill(t, root, nixtest.Random(4, 1)...)
	expectTidy(t, root)
	left, err := filepath.Glob(filepath.Join(root, "nix/var/nix/temproots/*"))
	if err != nil || len(left) > 0 {
		t.Errorf("temporary roots are left: %v (%v)", left, err)
	}
}

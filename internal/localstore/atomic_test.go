package localstore_test

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// expectValid checks how many paths of a closure are valid.
func expectValid(t *testing.T, s *localstore.Store, c nixtest.Closure, want int) {
	t.Helper()
	valid, err := s.ValidPaths(t.Context(), c.Paths())
	if err != nil || len(valid) != want {
		t.Errorf("%d paths are valid, want %d (%v)", len(valid), want, err)
	}
}

// addNow adds objects without a Flush. What is decided is counted.
func addNow(t *testing.T, im *localstore.Import, objects ...nixtest.Object) *verdictCount {
	t.Helper()
	count := new(verdictCount)
	for _, o := range objects {
		if err := im.Add(t.Context(), o.Info, bytes.NewReader(o.NAR), count.add); err != nil {
			t.Error(err)
		}
	}
	return count
}

type verdictCount struct {
	mu            sync.Mutex
	valid, failed int
	err           error // the last
}

func (c *verdictCount) add(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.valid++
		return
	}
	c.failed++
	c.err = err
}

func (c *verdictCount) expect(t *testing.T, valid, failed int) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.valid != valid || c.failed != failed {
		t.Errorf("%d paths were made valid and %d refused, want %d and %d; the last: %v", c.valid, c.failed, valid, failed, c.err)
	}
}

func TestAtomic(t *testing.T) {
	root := tempDir(t)
	s := openStore(t, localstore.Under(root))
	c := mixed()
	mustAdd(t, s, c[0])
	im := s.NewImport(localstore.ImportOptions{BatchPaths: 5})
	if err := im.Atomic(len(c)); err != nil {
		t.Fatal(err)
	}
	verdicts := addNow(t, im, c...)
	if err := im.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	expectValid(t, s, c, 1)
	if err := im.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	verdicts.expect(t, len(c), 0)
	expectValid(t, s, c, len(c))
	if err := im.Close(); err != nil {
		t.Error(err)
	}
	expectTidy(t, root)
	verifyWithNix(t, root)
}

// TestAtomicIncomplete wants that nothing is valid where something is missing: a path
// that nobody refers to, one that was damaged, a reference, or the Flush.
func TestAtomicIncomplete(t *testing.T) {
	c := nixtest.Random(3, 30)
	damaged := c[len(c)-1]
	damaged.NAR = bytes.Clone(damaged.NAR)
	damaged.NAR[len(damaged.NAR)/2] ^= 1
	for name, test := range map[string]struct {
		objects nixtest.Closure
		paths   int
		flush   bool
	}{
		"path missing":      {c[:len(c)-1], len(c), true},
		"path damaged":      {append(c[:len(c)-1:len(c)-1], damaged), len(c), true},
		"reference missing": {c[1:], len(c) - 1, true},
		"not flushed":       {c, len(c), false},
	} {
		t.Run(name, func(t *testing.T) {
			root := tempDir(t)
			s := openStore(t, localstore.Under(root))
			im := s.NewImport(localstore.ImportOptions{})
			if err := im.Atomic(test.paths); err != nil {
				t.Fatal(err)
			}
			verdicts := addNow(t, im, test.objects...)
			if test.flush {
				if err := im.Flush(t.Context()); err != nil {
					t.Error(err)
				}
				verdicts.expect(t, 0, len(test.objects))
			}
			if err := im.Close(); err != nil {
				t.Error(err)
			}
			verdicts.expect(t, 0, len(test.objects))
			expectValid(t, s, c, 0)
			expectTidy(t, root)
		})
	}
}

// TestAtomicAgain has a path that was damaged come once more.
func TestAtomicAgain(t *testing.T) {
	s := openStore(t, localstore.Under(tempDir(t)))
	c := nixtest.Chain(3)
	damaged := c[1]
	damaged.NAR = bytes.Clone(damaged.NAR)
	damaged.NAR[len(damaged.NAR)-20] ^= 1
	im := s.NewImport(localstore.ImportOptions{})
	if err := im.Atomic(len(c)); err != nil {
		t.Fatal(err)
	}
	first := addNow(t, im, c[0], damaged, c[2])
	if err := im.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	first.expect(t, 0, 1)
	addNow(t, im, c[1])
	if err := im.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	first.expect(t, 2, 1)
	expectValid(t, s, c, 3)
	im.Close()
}

func TestAtomicTooMany(t *testing.T) {
	im := openStore(t, localstore.Under(tempDir(t))).NewImport(localstore.ImportOptions{})
	if err := im.Atomic(1 << 40); err == nil || !strings.Contains(err.Error(), "ulimit -n") {
		t.Errorf("got %v", err)
	}
	im.Close()
}

// TestAtomicImportsAtOnce has two imports of a closure each in the other's way, in opposite
// orders, and one that is not atomic.
func TestAtomicImportsAtOnce(t *testing.T) {
	root := tempDir(t)
	c := nixtest.Random(5, 60)
	var imports sync.WaitGroup
	for i := range 3 {
		s := openStore(t, localstore.Under(root))
		imports.Go(func() {
			im := s.NewImport(localstore.ImportOptions{})
			order := c
			if i == 1 {
				order = make(nixtest.Closure, len(c))
				for j, o := range c {
					order[len(c)-1-j] = o
				}
			}
			if i < 2 {
				if err := im.Atomic(len(c)); err != nil {
					t.Error(err)
				}
			}
			verdicts := addNow(t, im, order...)
			if err := im.Flush(t.Context()); err != nil {
				t.Error(err)
			}
			verdicts.expect(t, len(c), 0)
			if err := im.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	imports.Wait()
	expectTidy(t, root)
	verifyWithNix(t, root)
}

func TestAtomicReferenceIsNamed(t *testing.T) {
	s := openStore(t, localstore.Under(tempDir(t)))
	c := nixtest.Chain(2)
	im := s.NewImport(localstore.ImportOptions{})
	if err := im.Atomic(1); err != nil {
		t.Fatal(err)
	}
	verdicts := addNow(t, im, c[1])
	if err := im.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	if !errors.Is(verdicts.err, nix.ErrNotValid) || !strings.Contains(verdicts.err.Error(), c[0].Info.Path.String()) {
		t.Errorf("got %v", verdicts.err)
	}
	im.Close()
}

package localstore_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// conforming is a store as the conformance suite wants it.
type conforming struct {
	*localstore.Store
	check func(*nix.PathInfo) error
}

func (s conforming) Import(context.Context) (nixtest.Importer, error) {
	return s.NewImport(localstore.ImportOptions{Check: s.check}), nil
}

func TestConformance(t *testing.T) {
	nixtest.TestStore(t, func(t *testing.T, check func(*nix.PathInfo) error) nixtest.StoreUnderTest {
		root := tempDir(t)
		s := openStore(t, localstore.Under(root))
		t.Cleanup(func() {
			expectTidy(t, root)
			verifyWithNix(t, root)
		})
		return conforming{s, check}
	})
}

// TestUnverifiableAddress imports what is only as good as its signature, with its content
// address, as Nix 2.34 does; Nix 2.8 cannot read that.
func TestUnverifiableAddress(t *testing.T) {
	s := openStore(t, localstore.Under(tempDir(t)))
	o := nixtest.GitTree()
	var keys nix.TrustedKeys
	check := func(info *nix.PathInfo) error {
		if !keys.Trusts(info) {
			return nix.ErrNotTrusted
		}
		return nil
	}
	im := s.NewImport(localstore.ImportOptions{Check: check})
	if err := addAll(t, im, o)[o.Info.Path.Base()]; !errors.Is(err, nix.ErrNotTrusted) {
		t.Errorf("without a signature: %v", err)
	}
	if err := im.Close(); err != nil {
		t.Error(err)
	}
	mustAdd(t, s, o)
	info, err := s.PathInfo(t.Context(), o.Info.Path)
	if err != nil || info.CA != o.Info.CA {
		t.Errorf("imported as %+v, %v", info, err)
	}
}

// expectTidy checks that a store has no files but those of valid paths.
func expectTidy(t testing.TB, root string) {
	t.Helper()
	c := localstore.Under(root)
	s, err := localstore.Open(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	entries, err := os.ReadDir(c.RealDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.Name() == ".links" {
			continue
		}
		p, err := nix.DefaultStoreDir.ParseBase(entry.Name())
		if err != nil {
			t.Errorf("%s is left behind", entry.Name())
		} else if _, err := s.PathInfo(context.Background(), p); err != nil {
			t.Errorf("left behind: %v", err)
		}
	}
}

// addAll adds objects in their order and returns the verdicts, by base name.
func addAll(t testing.TB, im *localstore.Import, objects ...nixtest.Object) map[string]error {
	t.Helper()
	var mu sync.Mutex
	verdicts := make(map[string]error)
	for _, o := range objects {
		err := im.Add(t.Context(), o.Info, bytes.NewReader(o.NAR), func(err error) {
			mu.Lock()
			defer mu.Unlock()
			if _, twice := verdicts[o.Info.Path.Base()]; twice {
				t.Errorf("%s was decided twice", o.Info.Path)
			}
			verdicts[o.Info.Path.Base()] = err
		})
		if err != nil {
			t.Errorf("add %s: %v", o.Info.Path, err)
		}
	}
	if err := im.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(verdicts) != len(objects) {
		t.Errorf("%d of %d paths were decided", len(verdicts), len(objects))
	}
	return verdicts
}

func mustAdd(t testing.TB, s *localstore.Store, objects ...nixtest.Object) {
	t.Helper()
	im := s.NewImport(localstore.ImportOptions{})
	for base, err := range addAll(t, im, objects...) {
		if err != nil {
			t.Errorf("%s: %v", base, err)
		}
	}
	if err := im.Close(); err != nil {
		t.Error(err)
	}
}

// mixed returns a closure with every kind of content address, and large files.
func mixed() nixtest.Closure {
	c := nixtest.Random(7, 40)
	drv, out := nixtest.Derivation("fixed", nixtest.Node{Content: "output\n"})
	large := nixtest.Source("large", nixtest.Node{Content: strings.Repeat("large ", 200_000)})
	self := nixtest.SelfSource("self", func(self string) nixtest.Node {
		return nixtest.Node{Content: strings.Repeat("x", 100_000) + self + " and again " + self}
	}, large.Info.Path)
	flat := nixtest.Flat("flat", strings.Repeat("flat", 100))
	return append(c, drv, out, large, self, flat, nixtest.Text("text", "text", flat.Info.Path))
}

func TestImportInAnyOrder(t *testing.T) {
	for name, arrange := range map[string]func(nixtest.Closure){
		"references first": func(nixtest.Closure) {},
		"referrers first":  slices.Reverse[nixtest.Closure],
	} {
		t.Run(name, func(t *testing.T) {
			root := tempDir(t)
			s := openStore(t, localstore.Under(root))
			c := mixed()
			arrange(c)
			im := s.NewImport(localstore.ImportOptions{BatchPaths: 5})
			if err := im.Expect(t.Context(), c.Paths()); err != nil {
				t.Fatal(err)
			}
			for base, err := range addAll(t, im, c...) {
				if err != nil {
					t.Errorf("%s: %v", base, err)
				}
			}
			if err := im.Close(); err != nil {
				t.Error(err)
			}
			infos, err := s.PathInfos(t.Context(), c.Paths())
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(infos, c.Infos(), nixtest.CompareInfos...); d != "" {
				t.Errorf("infos (-got +want):\n%s", d)
			}
			expectTidy(t, root)
			verifyWithNix(t, root)
			expectCanonical(t, s.RealPath(c[0].Info.Path))
		})
	}
}

// expectCanonical checks the metadata of a tree in a store.
func expectCanonical(t *testing.T, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if !st.ModTime().Equal(time.Unix(1, 0)) {
			t.Errorf("%s was modified at %v", path, st.ModTime())
		}
		if mode := st.Mode().Perm(); st.Mode()&os.ModeSymlink == 0 && mode != 0o555 && mode != 0o444 {
			t.Errorf("%s has mode %v", path, mode)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestDerivationOutputs(t *testing.T) {
	root := tempDir(t)
	drv, out := nixtest.Derivation("fixed", nixtest.Node{Content: "output\n"})
	mustAdd(t, openStore(t, localstore.Under(root)), drv, out)
	harness.Need(t, "nix-store")
	if got := nixStore(t, root, "-q", "--outputs", drv.Info.Path.String()); got != out.Info.Path.String() {
		t.Errorf("outputs of %s are %q", drv.Info.Path, got)
	}
	if got := nixStore(t, root, "-q", "--deriver", out.Info.Path.String()); got != drv.Info.Path.String() {
		t.Errorf("deriver of %s is %q", out.Info.Path, got)
	}
}

func TestMissingReferenceIsNamed(t *testing.T) {
	root := tempDir(t)
	s := openStore(t, localstore.Under(root))
	c := nixtest.Chain(3)
	im := s.NewImport(localstore.ImportOptions{})
	verdicts := addAll(t, im, c[0], c[2])
	if err := verdicts[c[0].Info.Path.Base()]; err != nil {
		t.Error(err)
	}
	if err := verdicts[c[2].Info.Path.Base()]; !errors.Is(err, nix.ErrNotValid) || !strings.Contains(err.Error(), c[1].Info.Path.String()) {
		t.Errorf("missing reference: %v", err)
	}
	if err := im.Close(); err != nil {
		t.Error(err)
	}
	expectTidy(t, root)
}

// TestCommitLeavesTheRest checks that Commit does not refuse what may come yet.
func TestCommitLeavesTheRest(t *testing.T) {
	s := openStore(t, localstore.Under(tempDir(t)))
	c := nixtest.Chain(2)
	im := s.NewImport(localstore.ImportOptions{})
	defer im.Close()
	var top error = errors.New("undecided")
	if err := im.Add(t.Context(), c[1].Info, bytes.NewReader(c[1].NAR), func(err error) { top = err }); err != nil {
		t.Fatal(err)
	}
	if err := im.Commit(t.Context()); err != nil || top == nil {
		t.Errorf("Commit = %v; the path is %v", err, top)
	}
	addAll(t, im, c[0])
	if top != nil {
		t.Error(top)
	}
}

// TestTwoImports has two stores, as in two processes, import the same closure at
// once in opposite orders.
func TestTwoImports(t *testing.T) {
	root := tempDir(t)
	c := mixed()
	var imports sync.WaitGroup
	for i := range 4 {
		s := openStore(t, localstore.Under(root))
		own := slices.Clone(c)
		if i%2 == 1 {
			slices.Reverse(own)
		}
		imports.Go(func() {
			im := s.NewImport(localstore.ImportOptions{BatchPaths: 3 + i})
			for base, err := range addAll(t, im, own...) {
				if err != nil {
					t.Errorf("%s: %v", base, err)
				}
			}
			if err := im.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	imports.Wait()
	expectTidy(t, root)
	verifyWithNix(t, root)
}

// TestImportsWaitForEachOther has two imports hold locks that the other wants: of
// paths that are complete, and of paths whose references come later.
func TestImportsWaitForEachOther(t *testing.T) {
	large := func(name string, refs ...nix.StorePath) nixtest.Object {
		return nixtest.Source(name, nixtest.Node{Content: strings.Repeat(name, 100_000)}, refs...)
	}
	leaf1, leaf2 := large("leaf-1"), large("leaf-2")
	top1, top2 := large("top-1", leaf1.Info.Path), large("top-2", leaf2.Info.Path)
	for name, orders := range map[string][2]nixtest.Closure{
		"complete":   {{leaf1, leaf2}, {leaf2, leaf1}},
		"incomplete": {{top1, top2, leaf1, leaf2}, {top2, top1, leaf1, leaf2}},
	} {
		t.Run(name, func(t *testing.T) {
			root := tempDir(t)
			var started, imports sync.WaitGroup
			started.Add(2)
			for _, order := range orders {
				im := openStore(t, localstore.Under(root)).NewImport(localstore.ImportOptions{})
				imports.Go(func() {
					for i, o := range order {
						err := im.Add(t.Context(), o.Info, bytes.NewReader(o.NAR), func(err error) {
							if err != nil {
								t.Errorf("%s: %v", o.Info.Path, err)
							}
						})
						if err != nil {
							t.Error(err)
						}
						if i == 0 {
							started.Done()
							started.Wait()
						}
					}
					if err := im.Close(); err != nil {
						t.Error(err)
					}
				})
			}
			imports.Wait()
			expectTidy(t, root)
			verifyWithNix(t, root)
		})
	}
}

func TestLeftoversAreReplaced(t *testing.T) {
	root := tempDir(t)
	s := openStore(t, localstore.Under(root))
	o := nixtest.Chain(1)[0]
	real := s.RealPath(o.Info.Path)
	writeTree(t, real, map[string]string{"half": "written", "sub/deep": "x"})
	for path, mode := range map[string]os.FileMode{"sub": 0o555, "": 0o555} {
		if err := os.Chmod(filepath.Join(real, path), mode); err != nil {
			t.Fatal(err)
		}
	}
	writeTree(t, root, map[string]string{"nix/store/" + o.Info.Path.Base() + ".lock": ""})
	mustAdd(t, s, o)
	expectTidy(t, root)
	verifyWithNix(t, root)
}

// TestCutAndFlipped checks that no part of a stream and no changed stream makes a
// path valid or leaves anything behind.
func TestCutAndFlipped(t *testing.T) {
	root := tempDir(t)
	s := openStore(t, localstore.Under(root))
	o := nixtest.Output("tree", "tree", func(string) nixtest.Node {
		return nixtest.Node{Entries: map[string]nixtest.Node{
			"file": {Content: "content", Executable: true}, "link": {Target: "file"}, "sub": {Entries: map[string]nixtest.Node{}},
		}}
	})
	im := s.NewImport(localstore.ImportOptions{})
	for i := range o.NAR {
		verdict := errors.New("undecided")
		err := im.Add(t.Context(), o.Info, bytes.NewReader(o.NAR[:i]), func(err error) { verdict = err })
		if err == nil || verdict == nil {
			t.Errorf("cut at byte %d: Add = %v, verdict %v", i, err, verdict)
		}
		flipped := slices.Clone(o.NAR)
		flipped[i] ^= 1
		err = im.Add(t.Context(), o.Info, bytes.NewReader(flipped), func(err error) { verdict = err })
		if err = errors.Join(err, im.Flush(t.Context())); err != nil {
			t.Error(err)
		}
		if !errors.Is(verdict, nix.ErrDamaged) {
			t.Errorf("flipped at byte %d: verdict %v", i, verdict)
		}
	}
	if err := im.Close(); err != nil {
		t.Error(err)
	}
	if valid, err := s.ValidPaths(t.Context(), []nix.StorePath{o.Info.Path}); err != nil || len(valid) > 0 {
		t.Errorf("valid paths: %v, %v", valid, err)
	}
	expectTidy(t, root)
}

// TestCancelled checks that an import that is cancelled on the way leaves nothing.
func TestCancelled(t *testing.T) {
	root := tempDir(t)
	s := openStore(t, localstore.Under(root))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	im := s.NewImport(localstore.ImportOptions{})
	for i, o := range mixed() {
		if i == 20 {
			cancel()
		}
		im.Add(ctx, o.Info, bytes.NewReader(o.NAR), func(error) {})
	}
	if err := im.Close(); err != nil {
		t.Error(err)
	}
	expectTidy(t, root)
	verifyWithNix(t, root)
}

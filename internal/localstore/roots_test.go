package localstore_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// collectGarbage has the real Nix delete what has no root.
func collectGarbage(t *testing.T, root string) string {
	t.Helper()
	harness.Need(t, "nix-store")
	return nixStore(t, root, "--gc")
}

// fill makes a store with objects and closes it, so that nothing holds them.
func fill(t *testing.T, root string, objects ...nixtest.Object) {
	t.Helper()
	s, err := localstore.OpenOrCreate(t.Context(), localstore.Under(root))
	if err != nil {
		t.Fatal(err)
	}
	mustAdd(t, s, objects...)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestHoldKeepsFromGarbageCollection(t *testing.T) {
	root := tempDir(t)
	c := nixtest.Random(3, 200)
	fill(t, root, c...)
	s, err := localstore.Open(t.Context(), localstore.Under(root))
	if err != nil {
		t.Fatal(err)
	}
	kept := c[100].Info.Path
	if err := s.Hold(t.Context(), []nix.StorePath{kept}); err != nil {
		t.Fatal(err)
	}
	collectGarbage(t, root)
	infos, err := s.Closure(t.Context(), []nix.StorePath{kept})
	if err != nil {
		t.Fatal(err)
	}
	want, err := nixtest.NewStore(c...).Closure(t.Context(), []nix.StorePath{kept})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(pathsOf(infos), pathsOf(want)); d != "" {
		t.Errorf("what is held (-got +want):\n%s", d)
	}
	if valid, err := s.ValidPaths(t.Context(), c.Paths()); err != nil || len(valid) != len(want) {
		t.Errorf("%d paths are valid after the collection, want %d (%v)", len(valid), len(want), err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(filepath.Join(root, "nix/var/nix/temproots"))
	if err != nil || len(entries) > 0 {
		t.Errorf("after Close there are temporary roots %v (%v)", entries, err)
	}
	collectGarbage(t, root)
	expectTidy(t, root)
}

func TestAddRoot(t *testing.T) {
	root := tempDir(t)
	c := nixtest.Chain(3)
	fill(t, root, c...)
	links := tempDir(t)
	direct := filepath.Join(root, "nix/var/nix/gcroots/direct")
	indirect := filepath.Join(links, "sub/indirect")
	s, err := localstore.Open(t.Context(), localstore.Under(root))
	if err != nil {
		t.Fatal(err)
	}
	for link, p := range map[string]nix.StorePath{direct: c[0].Info.Path, indirect: c[1].Info.Path} {
		for range 2 {
			if err := s.AddRoot(t.Context(), link, p); err != nil {
				t.Error(err)
			}
		}
		if target, err := os.Readlink(link); err != nil || target != p.String() {
			t.Errorf("%s leads to %q (%v)", link, target, err)
		}
	}
	writeTree(t, links, map[string]string{"file": "precious", "elsewhere": "->/etc/passwd"})
	for _, name := range []string{"file", "elsewhere"} {
		if err := s.AddRoot(t.Context(), filepath.Join(links, name), c[0].Info.Path); err == nil {
			t.Errorf("%s was replaced", name)
		}
	}
	absent := nixtest.Diamond().Top()
	if err := s.AddRoot(t.Context(), filepath.Join(links, "absent"), absent); !errors.Is(err, nix.ErrNotValid) {
		t.Errorf("root for a path that is not valid: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	harness.Need(t, "nix-store")
	roots := nixStore(t, root, "--gc", "--print-roots")
	for _, link := range []string{direct, indirect} {
		if !strings.Contains(roots, link) {
			t.Errorf("Nix does not know the root %s:\n%s", link, roots)
		}
	}
	collectGarbage(t, root)
	if out, err := tryRun("nix-store", "--store", root, "--check-validity", c[1].Info.Path.String()); err != nil {
		t.Error(out, err)
	}
	if _, err := tryRun("nix-store", "--store", root, "--check-validity", c[2].Info.Path.String()); err == nil {
		t.Error("what has no root is still valid")
	}
}

func TestSetProfile(t *testing.T) {
	root := tempDir(t)
	s := openStore(t, localstore.Under(root))
	c := nixtest.Chain(3)
	mustAdd(t, s, c...)
	for name, dir := range map[string]string{"in the state directory": filepath.Join(root, "nix/var/nix/profiles"), "elsewhere": tempDir(t)} {
		t.Run(name, func(t *testing.T) {
			profile := filepath.Join(dir, "web")
			for i, step := range []struct{ object, want int }{{0, 1}, {0, 1}, {1, 2}, {0, 3}} {
				p := c[step.object].Info.Path
				number, err := s.SetProfile(t.Context(), profile, p)
				if err != nil || number != step.want {
					t.Fatalf("step %d: generation %d, %v; want %d", i, number, err, step.want)
				}
				if target, err := os.Readlink(profile); err != nil || target != fmt.Sprintf("web-%d-link", step.want) {
					t.Errorf("step %d: profile leads to %q (%v)", i, target, err)
				}
				if got, _, err := s.Resolve(t.Context(), profile); err != nil || got != p {
					t.Errorf("step %d: profile resolves to %s, %v", i, got, err)
				}
			}
			generations, err := s.Generations(profile)
			if err != nil || len(generations) != 3 || generations[1].Path != c[1].Info.Path || generations[1].Number != 2 {
				t.Errorf("generations are %v (%v)", generations, err)
			}
			if err := s.SwitchGeneration(t.Context(), profile, 1); err != nil {
				t.Fatal(err)
			}
			if generations, err = s.Generations(profile); err != nil || !generations[0].Current || generations[2].Current {
				t.Errorf("after a switch to generation 1 there are %v (%v)", generations, err)
			}
			if err := s.SwitchGeneration(t.Context(), profile, 9); err == nil {
				t.Error("the profile leads to a generation that is not there")
			}
			if _, err := os.Lstat(profile + ".lock"); err == nil {
				t.Error("the profile's lock is left behind")
			}
			harness.Need(t, "nix-store")
			if roots := nixStore(t, root, "--gc", "--print-roots"); !strings.Contains(roots, profile+"-2-link") {
				t.Errorf("Nix does not know generation 2:\n%s", roots)
			}
		})
	}
}

func TestResolve(t *testing.T) {
	root := tempDir(t)
	s := openStore(t, localstore.Under(root))
	o := nixtest.Chain(1)[0]
	mustAdd(t, s, o)
	p := o.Info.Path
	dir := tempDir(t)
	writeTree(t, dir, map[string]string{
		"result":     "->" + p.String(),
		"result-bin": "->result/bin",
		"real":       "->" + s.RealPath(p),
		"deep/up":    "->../result",
		"loop":       "->loop",
		"file":       "",
	})
	for arg, want := range map[string]string{
		p.String():                             "",
		p.String() + "/bin/../data":            "data",
		s.RealPath(p) + "/bin":                 "bin",
		filepath.Join(dir, "result"):           "",
		filepath.Join(dir, "result/bin/run"):   "bin/run",
		filepath.Join(dir, "result-bin/run"):   "bin/run",
		filepath.Join(dir, "real/data"):        "data",
		filepath.Join(dir, "deep/up/bin/run"):  "bin/run",
		filepath.Join(dir, "deep/../deep/up/"): "",
	} {
		if got, rest, err := s.Resolve(t.Context(), arg); err != nil || got != p || rest != want {
			t.Errorf("Resolve(%s) = %s, %q, %v; want %q", arg, got, rest, err, want)
		}
	}
	for _, arg := range []string{filepath.Join(dir, "loop"), filepath.Join(dir, "file"), filepath.Join(dir, "absent"), "/", "/nix/store", "/nix/store/short"} {
		if got, _, err := s.Resolve(t.Context(), arg); err == nil {
			t.Errorf("Resolve(%s) = %s", arg, got)
		}
	}
}

// A machine without /nix resolves links into it.
func TestResolveIntoMissingDirectory(t *testing.T) {
	dir := tempDir(t)
	store := nix.StoreDir(filepath.Join(dir, "missing/store"))
	p, err := store.Parse(string(store) + "/" + nixtest.Chain(1)[0].Info.Path.Base())
	if err != nil {
		t.Fatal(err)
	}
	writeTree(t, dir, map[string]string{
		"result":  "->" + p.String(),
		"profile": "->profile-1-link", "profile-1-link": "->" + p.String(),
		"relative": "->missing/store/" + p.Base() + "/share",
	})
	for arg, want := range map[string]string{
		p.String() + "/bin":               "bin",
		filepath.Join(dir, "result"):      "",
		filepath.Join(dir, "result/bin"):  "bin",
		filepath.Join(dir, "profile/bin"): "bin",
		filepath.Join(dir, "relative/x"):  "share/x",
	} {
		got, rest, err := localstore.Resolve(t.Context(), store, "/elsewhere", arg)
		if err != nil || got != p || rest != want {
			t.Errorf("Resolve(%s) = %s, %q, %v; want %q", arg, got, rest, err, want)
		}
	}
}

func TestDelete(t *testing.T) {
	root := tempDir(t)
	c := nixtest.Chain(4)
	self := nixtest.SelfSource("self", func(self string) nixtest.Node { return nixtest.Node{Content: self} })
	fill(t, root, append(c, self)...)
	s := openStore(t, localstore.Under(root))
	var alive *localstore.AliveError
	if _, err := s.Delete(t.Context(), c.Paths()[:2]); !errors.As(err, &alive) || alive.By != c[2].Info.Path.String() {
		t.Errorf("delete what is referred to: %v", err)
	}
	link := filepath.Join(root, "nix/var/nix/gcroots/keep")
	if err := os.Symlink(c[3].Info.Path.String(), link); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Delete(t.Context(), c.Paths()); !errors.As(err, &alive) || alive.By != link {
		t.Errorf("delete what is a root: %v", err)
	}
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	other, err := localstore.Open(t.Context(), localstore.Under(root))
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Hold(t.Context(), c.Paths()[1:2]); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Delete(t.Context(), c.Paths()); !errors.As(err, &alive) || alive.Path != c[1].Info.Path {
		t.Errorf("delete what is held: %v", err)
	}
	indirect := filepath.Join(tempDir(t), "result")
	if err := other.AddRoot(t.Context(), indirect, c[2].Info.Path); err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Delete(t.Context(), c.Paths()); !errors.As(err, &alive) || alive.By != indirect {
		t.Errorf("delete what has an indirect root: %v", err)
	}
	if err := os.Remove(indirect); err != nil {
		t.Fatal(err)
	}
	if freed, err := s.Delete(t.Context(), append(c.Paths(), self.Info.Path)); err != nil || freed <= 0 {
		t.Errorf("Delete = %d, %v", freed, err)
	}
	if _, err := s.Delete(t.Context(), c.Paths()[:1]); !errors.Is(err, nix.ErrNotValid) {
		t.Errorf("delete again: %v", err)
	}
	if paths, err := s.AllPaths(t.Context()); err != nil || len(paths) > 0 {
		t.Errorf("left: %v, %v", paths, err)
	}
	expectTidy(t, root)
	verifyWithNix(t, root)
}

package harness_test

import (
	"bytes"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/e2e/harness"
)

func newStore(t *testing.T) *harness.Store {
	t.Helper()
	harness.Need(t, "nix-store", "nix")
	root := t.TempDir()
	t.Cleanup(func() { harness.RemoveAll(root) })
	s, err := harness.NewStore(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// checkClosure compares a store with the closure that was put into it.
func checkClosure(t *testing.T, s *harness.Store, c *harness.Closure, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	out, err := s.Nix(t.Context(), nil, append([]string{"nix-store", "-qR"}, c.Roots...)...)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, o := range c.Paths {
		want = append(want, o.Path)
	}
	slices.Sort(want)
	if diff := cmp.Diff(slices.Sorted(slices.Values(strings.Fields(out))), want); diff != "" {
		t.Errorf("closure of the roots (-got +want):\n%s", diff)
	}
	if strays, err := s.Strays(t.Context()); err != nil || len(strays) > 0 {
		t.Errorf("strays %v, %v", strays, err)
	}
}

func TestTinyClosure(t *testing.T) {
	s := newStore(t)
	c, err := harness.TinyClosure(t.Context(), s, 50)
	checkClosure(t, s, c, err)
	if len(c.Paths) != 50 || len(c.Roots) != 1 {
		t.Errorf("%d paths, %d roots, want 50 and 1", len(c.Paths), len(c.Roots))
	}
}

func TestTinyDatabase(t *testing.T) {
	harness.Need(t, "nix-store", "nix")
	t.Setenv("COPY_CLOSURE_TEST_CACHE", t.TempDir())
	for range 2 { // the second is taken from the cache
		s, c, err := harness.TinyDatabase(t.Context(), 20)
		if err != nil {
			t.Fatal(err)
		}
		out, err := s.Nix(t.Context(), nil, "nix-store", "-qR", c.Prefix(5).Roots[0])
		if got := len(strings.Fields(out)); err != nil || got != 5 {
			t.Errorf("closure of the first five: %d paths, %v", got, err)
		}
	}
}

func TestBigFile(t *testing.T) {
	s := newStore(t)
	c, err := harness.BigFile(t.Context(), s, 1<<20)
	checkClosure(t, s, c, err)
}

func TestPackages(t *testing.T) {
	t.Setenv("COPY_CLOSURE_TEST_CACHE", t.TempDir())
	var first *harness.Closure
	for range 2 { // the second is taken from the cache
		s := newStore(t)
		c, err := harness.Packages(t.Context(), s, 10, 2<<20)
		checkClosure(t, s, c, err)
		if len(c.Roots) != 1 || c.NarSize() < 2<<20 {
			t.Errorf("%d roots, %d bytes, want 1 and at least 2 MiB", len(c.Roots), c.NarSize())
		}
		if first != nil {
			if diff := cmp.Diff(c, first); diff != "" {
				t.Errorf("second time (-got +want):\n%s", diff)
			}
		}
		first = c
	}
	if dir, err := harness.CacheDir(); err == nil {
		harness.RemoveAll(dir)
	}
}

func TestDebianClosure(t *testing.T) {
	harness.Need(t, "apt-get", "apt-cache", "dpkg-deb")
	s := newStore(t)
	c, err := harness.DebianClosure(t.Context(), s, 40)
	if err != nil {
		harness.Unavailable(t, err)
	}
	checkClosure(t, s, c, err)
	if len(c.Paths) != 40 {
		t.Errorf("%d paths, want 40", len(c.Paths))
	}
	t.Logf("%d paths, %d roots, %d MB", len(c.Paths), len(c.Roots), c.NarSize()/1e6)
}

func TestDamage(t *testing.T) {
	s := newStore(t)
	c, err := harness.TinyClosure(t.Context(), s, 2)
	checkClosure(t, s, c, err)
	if err := s.Damage(c.Roots[0]); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context()); err == nil || !strings.Contains(err.Error(), c.Roots[0]) {
		t.Errorf("Verify after Damage: %v, want an error that names %s", err, c.Roots[0])
	}
}

func TestStraysAndGarbage(t *testing.T) {
	s := newStore(t)
	c, err := harness.TinyClosure(t.Context(), s, 3)
	checkClosure(t, s, c, err)
	if err := os.WriteFile(s.Physical(c.Roots[0])+".lock", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Strays(t.Context()); err != nil || len(got) != 1 {
		t.Errorf("Strays = %v, %v, want the lock", got, err)
	}
	if err := s.CollectGarbage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := s.ValidPaths(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("ValidPaths after a garbage collection = %v, %v, want none", got, err)
	}
}

// A user beside a daemon may ask, but what he reads comes from the daemon, and
// he can neither write the store nor see another namespace's /nix.
func TestNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		harness.Unavailable(t, os.ErrPermission)
	}
	harness.Need(t, "unshare", "setpriv", "nix-daemon")
	for _, readOnly := range []bool{false, true} {
		s := newStore(t)
		c, err := harness.TinyClosure(t.Context(), s, 3)
		checkClosure(t, s, c, err)
		n, err := harness.NewNamespace(s, readOnly)
		if err != nil {
			t.Fatal(err)
		}
		d, err := n.StartDaemon(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if out, err := asNobody(t, n, "nix-store", "-qR", c.Roots[0]); err != nil || len(strings.Fields(out)) != 3 {
			t.Errorf("closure through the daemon: %q, %v", out, err)
		}
		if out, err := asNobody(t, n, "nix", "store", "ping"); err != nil || !strings.Contains(out, "daemon") {
			t.Errorf("store of a user: %q, %v, want the daemon", out, err)
		}
		if _, err := asNobody(t, n, "touch", "/nix/store/x"); err == nil {
			t.Error("a user could write the store")
		}
		// The daemon writes also where the mount is read-only.
		if out, err := asNobody(t, n, "nix-store", "--add", "/etc/hostname"); err != nil {
			t.Errorf("add through the daemon: %q, %v", out, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if err := s.Verify(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func asNobody(t *testing.T, n *harness.Namespace, args ...string) (string, error) {
	t.Helper()
	line, err := harness.AsNobody("/nonexistent", args...)
	if err != nil {
		t.Fatal(err)
	}
	line = n.Command(line...)
	cmd := exec.CommandContext(t.Context(), line[0], line[1:]...)
	cmd.Env = append(os.Environ(), n.Env()...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	return out.String(), err
}

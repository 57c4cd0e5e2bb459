package localstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// helperVariable makes the test binary run one of helpers instead of the tests.
const helperVariable = "LOCALSTORE_TEST_HELPER"

// helpers are what the tests need a process of its own for. Each gets the root of a
// store.
var helpers = map[string]func(root string) error{
	"import":     importHelper,
	"disk full":  diskFullHelper,
	"read-only":  readOnlyHelper,
	"remount":    remountHelper,
	"write":      writeHelper,
	"read":       readHelper,
	"cannot":     cannotWriteHelper,
	"open files": openFilesHelper,
	"stall":      stallHelper,
	"delete":     deleteHelper,

	"ask for closures": closuresHelper,
	"slow disk":        slowDiskHelper,
	"contend":          contendHelper,
	"import many":      importManyHelper,
	"import huge":      importHugeHelper,
}

func TestMain(m *testing.M) {
	name := os.Getenv(helperVariable)
	if name == "" {
		os.Exit(m.Run())
	}
	if err := helpers[name](os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// helper returns a command that runs a helper.
func helper(name, root string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], root)
	cmd.Env = append(os.Environ(), helperVariable+"="+name)
	return cmd
}

func runHelper(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// needRoot skips a test where mounts or other users are needed.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		harness.Unavailable(t, errors.New("needs root"))
	}
}

// inMounts runs a helper in a mount namespace of its own after a script, in which
// $0 is the store's root.
func inMounts(t *testing.T, script, name, root string) *exec.Cmd {
	t.Helper()
	needRoot(t)
	cmd := helper(name, root)
	cmd.Args = []string{"unshare", "-m", "sh", "-ec", script + `; exec "$1" "$0"`, root, os.Args[0]}
	harness.Need(t, "unshare")
	cmd.Path, cmd.Err = exec.LookPath("unshare")
	return cmd
}

// closureOfHelpers is what the helpers import.
func closureOfHelpers() nixtest.Closure { return nixtest.Random(11, 300) }

// importAll returns the first verdict that is not nil.
func importAll(ctx context.Context, s *localstore.Store, c nixtest.Closure) error {
	im := s.NewImport(localstore.ImportOptions{BatchPaths: 20})
	var mu sync.Mutex
	var first error
	note := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if first == nil {
			first = err
		}
	}
	note(im.Expect(ctx, c.Paths()))
	for _, o := range c {
		note(im.Add(ctx, o.Info, bytes.NewReader(o.NAR), note))
	}
	note(im.Close())
	return first
}

func importHelper(root string) error {
	ctx := context.Background()
	s, err := localstore.OpenOrCreate(ctx, localstore.Under(root))
	if err != nil {
		return err
	}
	return errors.Join(importAll(ctx, s, closureOfHelpers()), s.Close())
}

// TestProcessesAtOnce has several processes make a store and fill it.
func TestProcessesAtOnce(t *testing.T) {
	root := tempDir(t)
	var running sync.WaitGroup
	for range 4 {
		running.Go(func() { runHelper(t, helper("import", root)) })
	}
	running.Wait()
	s := openStore(t, localstore.Under(root))
	c := closureOfHelpers()
	if valid, err := s.ValidPaths(t.Context(), c.Paths()); err != nil || len(valid) != len(c) {
		t.Errorf("%d of %d paths are valid (%v)", len(valid), len(c), err)
	}
	expectTidy(t, root)
	verifyWithNix(t, root)
}

// TestKilled kills an import at many moments. What is valid must be whole, and the
// next import must clear away what is not.
func TestKilled(t *testing.T) {
	root := tempDir(t)
	for i := range 15 {
		cmd := helper("import", root)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(5+10*i) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
		cmd.Wait() // its error is that we killed it
		s, err := localstore.Open(t.Context(), localstore.Under(root))
		if errors.Is(err, localstore.ErrNoStore) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		err = s.Verify(t.Context(), nil, func(p nix.StorePath, err error) {
			if err != nil {
				t.Errorf("killed in round %d: %s: %v", i, p, err)
			}
		})
		if err = errors.Join(err, s.Close()); err != nil {
			t.Error(err)
		}
	}
	runHelper(t, helper("import", root))
	expectTidy(t, root)
	verifyWithNix(t, root)
}

// diskFullHelper imports more than there is room for, in small files and in large.
func diskFullHelper(root string) error {
	ctx := context.Background()
	s, err := localstore.Open(ctx, localstore.Under(root))
	if err != nil {
		return err
	}
	small := nixtest.Closure{}
	for i := range 1000 {
		small = append(small, nixtest.Source(fmt.Sprint("small-", i), nixtest.Node{Content: strings.Repeat(fmt.Sprint(i), 3000)}))
	}
	large := nixtest.Closure{nixtest.Source("large", nixtest.Node{Content: strings.Repeat("large", 1<<20)})}
	for _, c := range []nixtest.Closure{small, large} {
		if err := importAll(ctx, s, c); !errors.Is(err, nix.ErrNoSpace) {
			return fmt.Errorf("import: %v; want an error of no space", err)
		}
	}
	valid, err := s.AllPaths(ctx)
	if err != nil || len(valid) == 0 || len(valid) == 1000 {
		return fmt.Errorf("%d paths are valid (%v)", len(valid), err)
	}
	entries, err := os.ReadDir(localstore.Under(root).RealDir)
	if err != nil || len(entries) != len(valid) {
		return fmt.Errorf("%d paths are valid, and there are %d (%v)", len(valid), len(entries), err)
	}
	err = s.Verify(ctx, nil, func(p nix.StorePath, bad error) { err = errors.Join(err, bad) })
	return errors.Join(err, s.Close())
}

func TestDiskFull(t *testing.T) {
	root := tempDir(t)
	fill(t, root)
	runHelper(t, inMounts(t, `mount -t tmpfs -o size=1m none "$0/nix/store"`, "disk full", root))
}

// readOnlyHelper runs where the contents are mounted read-only.
func readOnlyHelper(root string) error {
	ctx := context.Background()
	c := localstore.Under(root)
	if !localstore.NeedsNamespace(c) {
		return errors.New("NeedsNamespace = false")
	}
	if _, err := localstore.Open(ctx, c); !errors.Is(err, localstore.ErrReadOnly) {
		return fmt.Errorf("Open: %v; want ErrReadOnly", err)
	}
	if err := helper("remount", root).Run(); err == nil {
		return errors.New("the mount was changed for others")
	}
	if !localstore.NeedsNamespace(c) {
		return errors.New("the mount is writable")
	}
	cmd := helper("remount", root)
	localstore.InNamespace(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if !localstore.NeedsNamespace(c) {
		return errors.New("the mount has become writable for others")
	}
	return readHelper(root)
}

func remountHelper(root string) error {
	if err := localstore.RemountWritable(localstore.Under(root)); err != nil {
		return err
	}
	return writeHelper(root)
}

// writeHelper writes the store.
func writeHelper(root string) error {
	ctx := context.Background()
	s, err := localstore.OpenOrCreate(ctx, localstore.Under(root))
	if err != nil {
		return err
	}
	return errors.Join(importAll(ctx, s, nixtest.Chain(3)), s.Close())
}

// readHelper reads the store as a user who may do no more.
func readHelper(root string) error {
	ctx := context.Background()
	c := localstore.Under(root)
	c.ReadOnly = true
	s, err := localstore.Open(ctx, c)
	if err != nil {
		return err
	}
	infos, err := s.Closure(ctx, []nix.StorePath{nixtest.Chain(3).Top()})
	if err == nil && len(infos) != 3 {
		err = fmt.Errorf("the closure has %d paths", len(infos))
	}
	return errors.Join(err, s.Verify(ctx, nil, func(p nix.StorePath, bad error) { err = errors.Join(err, bad) }), s.Close())
}

// cannotWriteHelper checks what a user is told who may only read.
func cannotWriteHelper(root string) error {
	ctx := context.Background()
	c := localstore.Under(root)
	if _, err := localstore.Open(ctx, c); !errors.Is(err, localstore.ErrReadOnly) {
		return fmt.Errorf("Open: %v; want ErrReadOnly", err)
	}
	c.ReadOnly = true
	s, err := localstore.Open(ctx, c)
	if err != nil {
		return err
	}
	if err := s.Hold(ctx, nixtest.Chain(1).Paths()); !errors.Is(err, localstore.ErrReadOnly) {
		return fmt.Errorf("Hold: %v; want ErrReadOnly", err)
	}
	if err := importAll(ctx, s, nixtest.Chain(1)); !errors.Is(err, localstore.ErrReadOnly) {
		return fmt.Errorf("Add: %v; want ErrReadOnly", err)
	}
	return s.Close()
}

func TestReadOnlyMount(t *testing.T) {
	root := tempDir(t)
	fill(t, root, nixtest.Random(1, 3)...)
	script := `mount --bind "$0/nix/store" "$0/nix/store"; mount -o remount,bind,ro "$0/nix/store"`
	runHelper(t, inMounts(t, script, "read-only", root))
	expectTidy(t, root)
	verifyWithNix(t, root)
}

// asNobody returns a command that runs a helper as a user without rights.
func asNobody(t *testing.T, name, root string) *exec.Cmd {
	t.Helper()
	needRoot(t)
	dir := tempDir(t)
	binary, err := os.ReadFile(os.Args[0])
	err = errors.Join(err, os.Chmod(dir, 0o755), os.WriteFile(filepath.Join(dir, "helper"), binary, 0o755))
	if err != nil {
		t.Fatal(err)
	}
	cmd := helper(name, root)
	cmd.Path = filepath.Join(dir, "helper")
	cmd.Dir = "/"
	const nobody = 65534
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return cmd
}

func TestAsNobody(t *testing.T) {
	needRoot(t)
	own := tempDir(t)
	if err := os.Chown(own, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	runHelper(t, asNobody(t, "write", own))
	verifyWithNix(t, own)

	roots := tempDir(t)
	if err := os.Chmod(roots, 0o755); err != nil {
		t.Fatal(err)
	}
	fill(t, roots, nixtest.Chain(3)...)
	runHelper(t, asNobody(t, "cannot", roots))
	for _, state := range []string{"nobody has it open", "it is open"} {
		t.Run(state, func(t *testing.T) {
			runHelper(t, asNobody(t, "read", roots))
			s := openStore(t, localstore.Under(roots)) // until the end, so that its files exist
			mustAdd(t, s, nixtest.Diamond()...)
			runHelper(t, asNobody(t, "read", roots))
		})
	}
}

// openFilesHelper imports more paths than it may open files.
func openFilesHelper(root string) error {
	limit := syscall.Rlimit{Cur: 200, Max: 200}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	ctx := context.Background()
	s, err := localstore.OpenOrCreate(ctx, localstore.Under(root))
	if err != nil {
		return err
	}
	// Referrers first, so that none can be registered before the last.
	c := closureOfHelpers()
	for i, j := 0, len(c)-1; i < j; i, j = i+1, j-1 {
		c[i], c[j] = c[j], c[i]
	}
	return errors.Join(importAll(ctx, s, c), s.Close())
}

func TestFewOpenFiles(t *testing.T) {
	root := tempDir(t)
	runHelper(t, helper("open files", root))
	expectTidy(t, root)
	verifyWithNix(t, root)
}

// TestBesideNix reads and writes while Nix adds to the same store and collects its
// garbage.
func TestBesideNix(t *testing.T) {
	harness.Need(t, "nix-store")
	root := tempDir(t)
	c := closureOfHelpers()
	fill(t, root)
	s := openStore(t, localstore.Under(root))
	dir := tempDir(t)
	var running sync.WaitGroup
	stop := make(chan struct{})
	for i := range 2 {
		running.Go(func() {
			for n := range 20 {
				name := fmt.Sprintf("file-%d-%d", i, n)
				writeTree(t, dir, map[string]string{name: name})
				if _, err := tryRun("nix-store", "--store", root, "--add", filepath.Join(dir, name)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := tryRun("nix-store", "--store", root, "--gc"); err != nil && !diedOfItself(err) {
				t.Error(err)
			}
		}
	})
	for range 3 {
		if err := importAll(t.Context(), s, c); err != nil {
			t.Error(err)
		}
		for _, o := range c {
			if _, err := s.Closure(t.Context(), []nix.StorePath{o.Info.Path}); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(stop)
	running.Wait()
	verifyWithNix(t, root)
}

// diedOfItself reports whether Nix's collector failed in the way in which Nix 2.8 does
// when a process goes away while it looks for roots: an exception finds its helper
// thread running.
func diedOfItself(err error) bool {
	return strings.Contains(err.Error(), "terminate called without an active exception")
}

// TestDeleteBesideNix deletes paths while Nix adds others and takes temporary roots.
func TestDeleteBesideNix(t *testing.T) {
	harness.Need(t, "nix-store")
	root := tempDir(t)
	fill(t, root)
	s := openStore(t, localstore.Under(root))
	dir := tempDir(t)
	var running sync.WaitGroup
	for i := range 2 {
		running.Go(func() {
			for n := range 20 {
				name := fmt.Sprintf("file-%d", n) // the same paths from both
				writeTree(t, filepath.Join(dir, fmt.Sprint(i)), map[string]string{name: name})
				if _, err := tryRun("nix-store", "--store", root, "--add", filepath.Join(dir, fmt.Sprint(i), name)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { running.Wait(); close(done) }()
	deleted := 0
	for working := true; working; {
		select {
		case <-done:
			working = false
		default:
		}
		paths, err := s.AllPaths(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			var alive *localstore.AliveError
			switch _, err := s.Delete(t.Context(), []nix.StorePath{p}); {
			case err == nil:
				deleted++
			case !errors.As(err, &alive):
				t.Error(err)
			}
		}
	}
	if deleted == 0 {
		t.Error("nothing was deleted")
	}
	expectTidy(t, root)
	verifyWithNix(t, root)
}

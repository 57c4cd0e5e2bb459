package localstore_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// TestSweep finds a store as processes leave it that are killed: between the
// registration of a path and the release of its lock, and in the midst of another. The
// next import clears up, of what nobody is at work on.
func TestSweep(t *testing.T) {
	root := tempDir(t)
	c := nixtest.Random(3, 4)
	fill(t, root, c[0])
	config := localstore.Under(root)
	valid, half, busy, unlocked := c[0].Info.Path, c[1].Info.Path, c[2].Info.Path, c[3].Info.Path
	real := func(base, suffix string) string { return filepath.Join(config.RealDir, base) + suffix }
	for _, dir := range []string{half.Base(), busy.Base(), unlocked.Base()} {
		writeTree(t, real(dir, ""), map[string]string{"file": "not all of it"})
	}
	roots := ""
	for _, p := range c.Paths() {
		roots += p.String() + "\x00"
	}
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ofDead := filepath.Join(root, "nix/var/nix/temproots/1")
	write(ofDead, roots)
	for _, base := range []string{valid.Base(), half.Base(), busy.Base()} {
		write(real(base, ".lock"), "")
	}
	lock, err := os.Open(real(busy.Base(), ".lock"))
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()

	s := openStore(t, config)
	mustAdd(t, s, nixtest.Chain(1)...)
	for path, want := range map[string]bool{
		real(valid.Base(), ""):      true,
		real(valid.Base(), ".lock"): false,
		real(half.Base(), ""):       false,
		real(half.Base(), ".lock"):  false,
		real(busy.Base(), ""):       true,
		real(busy.Base(), ".lock"):  true,
		real(unlocked.Base(), ""):   false,
		ofDead:                      false,
	} {
		if _, err := os.Lstat(path); (err == nil) != want || err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v; want it to exist: %t", path, err, want)
		}
	}
}

// stalled is what stallHelper imports half of.
func stalled() nixtest.Object {
	return nixtest.Source("stalled", nixtest.Node{Content: strings.Repeat("stalled", 1<<20)})
}

// stallHelper imports half of a path, says so, and waits to be killed.
func stallHelper(root string) error {
	ctx := context.Background()
	s, err := localstore.OpenOrCreate(ctx, localstore.Under(root))
	if err != nil {
		return err
	}
	contents, w := io.Pipe()
	go func() {
		w.Write(stalled().NAR[:4<<20]) // returns when all was read
		fmt.Println("half")
	}()
	im := s.NewImport(localstore.ImportOptions{})
	return im.Add(ctx, stalled().Info, contents, func(error) {})
}

// leaveHalf has a process killed in the middle of an import into the store at root.
func leaveHalf(t *testing.T, root string) {
	t.Helper()
	cmd := helper("stall", root)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "half\n" {
		t.Errorf("the import said %q (%v)", line, err)
	}
	cmd.Process.Kill()
	cmd.Wait() // its error is that we killed it
	for _, name := range []string{"", ".lock"} {
		path := filepath.Join(localstore.Under(root).RealDir, stalled().Info.Path.Base()+name)
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("the test is no good: %v", err)
		}
	}
}

// TestSweepAfterCollector has others find that an import was killed, and delete its
// temporary roots, before the next import can.
func TestSweepAfterCollector(t *testing.T) {
	for name, collect := range map[string]func(t *testing.T, root string, other nix.StorePath){
		"delete": func(t *testing.T, root string, other nix.StorePath) {
			s := openStore(t, localstore.Under(root))
			if _, err := s.Delete(t.Context(), []nix.StorePath{other}); err != nil {
				t.Error(err)
			}
		},
		"nix-store --delete": func(t *testing.T, root string, other nix.StorePath) {
			harness.Need(t, "nix-store")
			nixStore(t, root, "--delete", other.String())
		},
		"nix-store --gc --print-roots": func(t *testing.T, root string, other nix.StorePath) {
			harness.Need(t, "nix-store")
			nixStore(t, root, "--gc", "--print-roots")
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := tempDir(t)
			// A name of its own: a path that some process of another test has open is not deleted.
			other := nixtest.Flat(fmt.Sprintf("other-%d", os.Getpid()), "other\n")
			fill(t, root, other)
			leaveHalf(t, root)
			collect(t, root, other.Info.Path)
			fill(t, root, nixtest.Random(3, 1)...)
			expectTidy(t, root)
			for _, dir := range []string{"temproots", "copy-closure/imports"} {
				left, err := os.ReadDir(filepath.Join(root, "nix/var/nix", dir))
				if err != nil || len(left) > 0 {
					t.Errorf("left in %s: %v (%v)", dir, left, err)
				}
			}
		})
	}
}

// TestRootsOfNamesake opens a store in a process whose number another had, as happens
// in containers: what that has left must be found none the less.
func TestRootsOfNamesake(t *testing.T) {
	root := tempDir(t)
	fill(t, root)
	s := openStore(t, localstore.Under(root))
	p := nixtest.Random(3, 1)[0].Info.Path
	dir := filepath.Join(root, "nix/var/nix/temproots")
	ofDead := filepath.Join(dir, strconv.Itoa(os.Getpid()))
	err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(ofDead, []byte(p.String()+"\x00"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	writeTree(t, s.RealPath(p), map[string]string{"file": "not all of it"})
	if err := os.WriteFile(s.RealPath(p)+".lock", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Hold(t.Context(), nixtest.Chain(1).Paths()); err != nil {
		t.Fatal(err)
	}
	mustAdd(t, s, nixtest.Chain(1)...)
	expectTidy(t, root)
}

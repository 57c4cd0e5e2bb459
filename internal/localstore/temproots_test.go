package localstore_test

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// lockAsCollector takes the lock that a garbage collection has.
func lockAsCollector(t *testing.T, root string) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(root, "nix/var/nix/gc.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// tempRootsOf reads all temporary roots.
func tempRootsOf(t *testing.T, root string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "nix/var/nix/temproots/*"))
	if err != nil {
		t.Fatal(err)
	}
	var roots []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // released just now
		}
		if err != nil {
			t.Error(err)
		}
		roots = append(roots, strings.FieldsFunc(string(text), func(r rune) bool { return r == 0 })...)
	}
	slices.Sort(roots)
	return roots
}

// TestHoldTellsTheCollector checks that a collection under way learns of every path.
func TestHoldTellsTheCollector(t *testing.T) {
	root := tempDir(t)
	s := openStore(t, localstore.Under(root))
	lock := lockAsCollector(t, root)
	defer lock.Close()
	socket := filepath.Join(root, "nix/var/nix/gc-socket/socket")
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	var collecting sync.WaitGroup
	collecting.Go(func() {
		conn, err := listener.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			told = append(told, lines.Text())
			if _, err := conn.Write([]byte("1")); err != nil {
				t.Error(err)
			}
		}
	})
	infos := madeUp(1000, 1000, 0)
	var paths []nix.StorePath
	for _, info := range infos {
		paths = append(paths, info.Path)
	}
	if err := s.Hold(t.Context(), paths); err != nil {
		t.Fatal(err)
	}
	listener.Close()
	collecting.Wait()
	slices.Sort(told)
	if d := cmp.Diff(told, pathsOf(infos)); d != "" {
		t.Errorf("the collector was told (-got +want):\n%s", d)
	}
	if d := cmp.Diff(tempRootsOf(t, root), pathsOf(infos)); d != "" {
		t.Errorf("temporary roots (-got +want):\n%s", d)
	}
}

// TestHoldWaitsForTheCollector checks the moments when the collector has its lock
// and no socket.
func TestHoldWaitsForTheCollector(t *testing.T) {
	root := tempDir(t)
	s := openStore(t, localstore.Under(root))
	paths := []nix.StorePath{madeUp(1, 1, 0)[0].Path}
	lock := lockAsCollector(t, root)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Hold(canceled, paths); !errors.Is(err, context.Canceled) {
		t.Errorf("Hold while the collector has its lock: %v", err)
	}
	held := make(chan error, 1)
	go func() { held <- s.Hold(t.Context(), paths) }()
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-held; err != nil {
		t.Error(err)
	}
	if got := tempRootsOf(t, root); len(got) != 1 || got[0] != paths[0].String() {
		t.Errorf("temporary roots are %v", got)
	}
}

// TestHoldWaitsForACollectorsQueue has many take roots while the queue of the
// collector's socket is full and the collector does not accept, as under load.
func TestHoldWaitsForACollectorsQueue(t *testing.T) {
	root := tempDir(t)
	s := openStore(t, localstore.Under(root))
	lock := lockAsCollector(t, root)
	defer lock.Close()
	socket := filepath.Join(root, "nix/var/nix/gc-socket/socket")
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	listener := listenWithoutQueue(t, socket)
	infos := madeUp(8, 8, 0)
	var holders sync.WaitGroup
	for _, info := range infos {
		holders.Go(func() {
			release, err := s.HoldUntil(t.Context(), info.Path)
			if err == nil {
				err = release()
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	canceled, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if err := s.Hold(canceled, []nix.StorePath{infos[0].Path}); !errors.Is(err, context.Canceled) {
		t.Errorf("Hold while the queue is full: %v", err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go answerAll(conn)
		}
	}()
	holders.Wait()
	listener.Close()
}

// listenWithoutQueue returns a listener at a socket that already refuses further
// connections with EAGAIN.
func listenWithoutQueue(t *testing.T, socket string) net.Listener {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		err = errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: socket}), unix.Listen(fd, 0))
	}
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), socket)
	defer f.Close()
	listener, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	for {
		conn, err := net.Dial("unix", socket)
		if errors.Is(err, unix.EAGAIN) {
			return listener
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	}
}

// answerAll answers each line as a collector does.
func answerAll(conn net.Conn) {
	defer conn.Close()
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if _, err := conn.Write([]byte("1")); err != nil {
			return
		}
	}
}

// TestHoldUntil has many hold paths at once, each for a while.
func TestHoldUntil(t *testing.T) {
	root := tempDir(t)
	s := openStore(t, localstore.Under(root))
	infos := madeUp(20, 20, 0)
	var holders sync.WaitGroup
	for _, info := range infos {
		holders.Go(func() {
			for range 20 {
				release, err := s.HoldUntil(t.Context(), info.Path)
				if err != nil {
					t.Error(err)
					return
				}
				if !slices.Contains(tempRootsOf(t, root), info.Path.String()) {
					t.Errorf("%s is not held", info.Path)
				}
				if err := release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	holders.Wait()
	if left := tempRootsOf(t, root); len(left) > 0 {
		t.Errorf("still held: %v", left)
	}
}

// TestVersion wants every change to be seen, whoever makes it.
func TestVersion(t *testing.T) {
	root := tempDir(t)
	fill(t, root)
	c := localstore.Under(root)
	c.ReadOnly = true
	reader := openStore(t, c)
	version := func() any {
		for {
			if v, ok := reader.Version(); ok {
				return v
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	seen := map[any]bool{}
	for i, o := range mixed()[:5] {
		v := version()
		if seen[v] {
			t.Errorf("path %d has not changed the version", i)
		}
		seen[v] = true
		if v != version() {
			t.Error("it changes by itself")
		}
		fill(t, root, o)
		if _, ok := reader.Version(); ok && version() == v {
			t.Error("right after a change the version is as before")
		}
	}
}

// TestReaderSeesChanges has a reader, who writes nothing, look at a store while
// others have it open and after they have closed it.
func TestReaderSeesChanges(t *testing.T) {
	root := tempDir(t)
	fill(t, root)
	c := localstore.Under(root)
	c.ReadOnly = true
	reader := openStore(t, c)
	objects := mixed()[:6]
	for i, o := range objects {
		if _, err := reader.PathInfo(t.Context(), o.Info.Path); !errors.Is(err, nix.ErrNotValid) {
			t.Errorf("before path %d was added: %v", i, err)
		}
		writer, err := localstore.Open(t.Context(), localstore.Under(root))
		if err != nil {
			t.Fatal(err)
		}
		mustAdd(t, writer, o)
		for _, when := range []string{"while it is open", "after it was closed"} {
			if _, err := reader.PathInfo(t.Context(), o.Info.Path); err != nil {
				t.Errorf("path %d, %s: %v", i, when, err)
			}
			if when == "while it is open" {
				if err := writer.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// TestReaderReadsAgain changes a database while a reader, who cannot lock it, reads.
func TestReaderReadsAgain(t *testing.T) {
	root := tempDir(t)
	fill(t, root)
	c := localstore.Under(root)
	c.ReadOnly = true
	reader := openStore(t, c)
	reads, err := localstore.ReadDuring(t.Context(), reader, func() { fill(t, root, nixtest.Chain(1)...) })
	if err != nil || reads < 2 {
		t.Errorf("the database was read %d times (%v)", reads, err)
	}
	if reads, err := localstore.ReadDuring(t.Context(), reader, func() {}); err != nil || reads != 1 {
		t.Errorf("the quiet database was read %d times (%v)", reads, err)
	}
}

// TestCollectorAnswers checks that whoever wants a path that is being deleted waits
// until it is, and that others do not.
func TestCollectorAnswers(t *testing.T) {
	root := tempDir(t)
	s := openStore(t, localstore.Under(root))
	c := nixtest.Chain(2)
	end, err := localstore.StartCollector(s, c.Paths()[:1])
	if err != nil {
		t.Fatal(err)
	}
	ask := func(p nix.StorePath) (answer func() error) {
		conn, err := net.Dial("unix", filepath.Join(root, "nix/var/nix/gc-socket/socket"))
		if err == nil {
			_, err = conn.Write([]byte(p.String() + "\n"))
		}
		if err != nil {
			t.Fatal(err)
		}
		return func() error {
			defer conn.Close()
			b := make([]byte, 1)
			_, err := conn.Read(b)
			if err == nil && b[0] != '1' {
				err = errors.New("the answer is " + string(b))
			}
			return err
		}
	}
	waiting := ask(c[0].Info.Path)
	answered := make(chan error, 1)
	go func() { answered <- waiting() }()
	for range 10 {
		if err := ask(c[1].Info.Path)(); err != nil {
			t.Errorf("a path that is not deleted: %v", err)
		}
	}
	select {
	case err := <-answered:
		t.Errorf("a path that is being deleted was answered (%v)", err)
		answered <- nil
	default:
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	if err := <-answered; err != nil {
		t.Errorf("a path that was deleted: %v", err)
	}
}

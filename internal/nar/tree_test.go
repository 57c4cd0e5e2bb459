package nar_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/nar"
)

// makeTree makes a tree of every kind of node, with files around the sizes at
// which buffers are full, and returns its path.
func makeTree(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "tree")
	file := func(path string, mode fs.FileMode, size int) {
		path = filepath.Join(root, path)
		check(t, os.MkdirAll(filepath.Dir(path), 0o755))
		content := bytes.Repeat([]byte(filepath.Base(path)), size/len(filepath.Base(path))+1)[:size]
		check(t, os.WriteFile(path, content, mode))
		check(t, os.Chmod(path, mode))
	}
	for _, size := range []int{0, 1, 7, 8, 9, 4096, 128<<10 - 1, 128 << 10, 128<<10 + 1, 256<<10 - 513,
		256<<10 - 1, 256 << 10, 256<<10 + 1, 512<<10 - 2, 1<<20 + 3} {
		file(fmt.Sprintf("sizes/%d", size), 0o644, size)
	}
	for i := range 500 {
		file(fmt.Sprintf("many/%d/%d", i%40, i), 0o640, i*37%9000)
	}
	file("modes/executable", 0o755, 10)
	file("modes/by-others", 0o655, 10)
	file("modes/read-only", 0o400, 10)
	for _, name := range []string{")", "..data", "...", "new\nline", "\xff\xfe", "-rf", " ", strings.Repeat("n", 255)} {
		file("names/"+name, 0o644, 3)
	}
	file(strings.Repeat("d/", nar.MaxDepth-2)+"f", 0o644, 3)
	check(t, os.Mkdir(filepath.Join(root, "empty"), 0o755))
	check(t, os.Symlink("../outside", filepath.Join(root, "link")))
	check(t, os.Symlink(strings.Repeat("t", 4095), filepath.Join(root, "long-link")))
	return root
}

func dump(t *testing.T, path string) []byte {
	t.Helper()
	var b bytes.Buffer
	check(t, nar.Dump(t.Context(), &b, path))
	return b.Bytes()
}

// nixStore returns the output of nix-store.
func nixStore(t *testing.T, stdin io.Reader, args ...string) []byte {
	t.Helper()
	harness.Need(t, "nix-store")
	cmd := exec.Command("nix-store", args...)
	cmd.Stdin = stdin
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("nix-store %q: %v\n%s", args, err, stderr.String())
	}
	return out
}

func TestDumpAsNix(t *testing.T) {
	root := makeTree(t)
	for _, name := range []string{"", "sizes/1048579", "modes/executable", "link", "empty", "many"} {
		path := filepath.Join(root, name)
		got := dump(t, path)
		if want := nixStore(t, nil, "--dump", path); !bytes.Equal(got, want) {
			t.Errorf("%q: the archive of %d bytes differs from Nix's of %d", name, len(got), len(want))
		}
		size, err := nar.Size(t.Context(), path)
		if err != nil || size != int64(len(got)) {
			t.Errorf("%q: Size is %d, %v; the archive has %d bytes", name, size, err, len(got))
		}
		again, err := reencode(bytes.NewReader(got))
		if err != nil || !bytes.Equal(again, got) {
			t.Errorf("%q: re-encoded to other bytes, %v", name, err)
		}
	}
}

func TestRestoreAsNix(t *testing.T) {
	data := dump(t, makeTree(t))
	dir := t.TempDir()
	theirs := filepath.Join(dir, "theirs")
	nixStore(t, bytes.NewReader(data), "--restore", theirs)
	want := listing(t, theirs)
	for _, workers := range []int{0, 1, 3} {
		ours := filepath.Join(dir, fmt.Sprint(workers))
		check(t, nar.Restore(t.Context(), bytes.NewReader(data), ours, nar.RestoreOptions{Workers: workers}))
		if diff := cmp.Diff(want, listing(t, ours)); diff != "" {
			t.Errorf("%d workers: tree (-theirs +ours):\n%s", workers, diff)
		}
		if got := nixStore(t, nil, "--dump", ours); !bytes.Equal(got, data) {
			t.Errorf("%d workers: Nix's archive of the tree differs", workers)
		}
	}
}

// listing returns mode and hash or target of everything in a tree.
func listing(t *testing.T, root string) map[string]string {
	t.Helper()
	list := make(map[string]string)
	check(t, filepath.Walk(root, func(path string, info fs.FileInfo, err error) error {
		if err != nil {
			return err
		}
		text := info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %x", sha256.Sum256(content))
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " " + target
		}
		list[strings.TrimPrefix(path, root)] = text
		return nil
	}))
	return list
}

func TestRestoreCanonical(t *testing.T) {
	data := dump(t, makeTree(t))
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	for _, workers := range []int{0, 1} {
		dest := filepath.Join(t.TempDir(), "dest")
		opts := nar.RestoreOptions{Canonical: true, Workers: workers}
		check(t, nar.Restore(t.Context(), bytes.NewReader(data), dest, opts))
		check(t, filepath.Walk(dest, func(path string, info fs.FileInfo, err error) error {
			if err != nil {
				return err
			}
			want := fs.FileMode(0o444)
			switch {
			case info.IsDir():
				want = fs.ModeDir | 0o555
			case info.Mode()&fs.ModeSymlink != 0:
				want = info.Mode()
			case filepath.Base(path) == "executable":
				want = 0o555
			}
			if info.Mode() != want || !info.ModTime().Equal(time.Unix(1, 0)) {
				t.Errorf("%q: mode %v, modified at %d; want %v and 1", path, info.Mode(), info.ModTime().UnixNano(), want)
			}
			return nil
		}))
		if !bytes.Equal(dump(t, dest), data) {
			t.Errorf("%d workers: the tree has another archive", workers)
		}
		check(t, nar.RemoveAll(dest))
		if _, err := os.Lstat(dest); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after RemoveAll: %v", err)
		}
	}
}

func TestRestoreReadsNotBeyond(t *testing.T) {
	for _, test := range accepted {
		r := bufio.NewReader(io.MultiReader(bytes.NewReader(test.data), strings.NewReader("next message")))
		dest := filepath.Join(t.TempDir(), "x")
		check(t, nar.Restore(t.Context(), r, dest, nar.RestoreOptions{Canonical: true}))
		if rest, _ := io.ReadAll(r); string(rest) != "next message" {
			t.Errorf("%s: behind the archive: %q", test.name, rest)
		}
		check(t, nar.RemoveAll(dest))
	}
}

func TestRestoreRejected(t *testing.T) {
	for _, test := range rejected {
		dir := t.TempDir()
		err := nar.Restore(t.Context(), bytes.NewReader(test.data), filepath.Join(dir, "x"), nar.RestoreOptions{Canonical: true})
		var format *nar.FormatError
		if !errors.As(err, &format) || !strings.Contains(err.Error(), filepath.Join(dir, "x")) {
			t.Errorf("%s: got %v, want a FormatError and the destination", test.name, err)
		}
		check(t, nar.RemoveAll(filepath.Join(dir, "x")))
		if list, _ := os.ReadDir(dir); len(list) != 0 {
			t.Errorf("%s: made %v", test.name, list)
		}
	}
}

// TestRestoreCut breaks the stream at some hundred places: every time there is
// an error, what was made has the beginning of the archive, and can be removed.
func TestRestoreCut(t *testing.T) {
	data := dump(t, makeTree(t))
	broken := errors.New("link is down")
	dest := filepath.Join(t.TempDir(), "x")
	for n := 0; n < len(data); n += len(data) / 150 {
		r := io.MultiReader(bytes.NewReader(data[:n]), iotest.ErrReader(broken))
		err := nar.Restore(t.Context(), r, dest, nar.RestoreOptions{Canonical: true})
		var early *nar.BrokenError
		if !errors.Is(err, broken) || !errors.As(err, &early) {
			t.Fatalf("cut at %d: got %v", n, err)
		}
		if lost := int64(n) - early.Offset; lost < 0 || lost > 192<<10 {
			t.Errorf("cut at %d: %d bytes are lost", n, lost)
		}
		if early.Offset > 0 {
			expectBeginning(t, dest, data[:early.Offset])
		}
		check(t, nar.RemoveAll(dest))
	}
	if n := openFiles(t); n > 50 {
		t.Errorf("%d files are open", n)
	}
}

// expectBeginning reads the archive of an unfinished tree.
func expectBeginning(t *testing.T, path string, want []byte) {
	t.Helper()
	tree, err := nar.Index(t.Context(), path)
	check(t, err)
	defer tree.Close()
	got := make([]byte, len(want))
	if _, err := tree.ReadAt(got, 0); err != nil && err != io.EOF || !bytes.Equal(got, want) {
		t.Errorf("the first %d bytes are others, %v", len(want), err)
	}
}

// openFiles returns the number of open files, or 0 where it cannot be told.
func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(list)
}

func TestRestoreExisting(t *testing.T) {
	dir := t.TempDir()
	check(t, os.Mkdir(filepath.Join(dir, "outside"), 0o755))
	check(t, os.Symlink("outside/made", filepath.Join(dir, "link")))
	check(t, os.WriteFile(filepath.Join(dir, "file"), []byte("precious"), 0o644))
	for _, test := range accepted[:4] {
		for _, name := range []string{"link", "file", "outside"} {
			err := nar.Restore(t.Context(), bytes.NewReader(test.data), filepath.Join(dir, name), nar.RestoreOptions{})
			if !errors.Is(err, fs.ErrExist) {
				t.Errorf("%s at %s: got %v, want EEXIST", test.name, name, err)
			}
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "outside/made")); err == nil {
		t.Error("a link was followed")
	}
	for _, name := range []string{"..", "/", "."} {
		if err := nar.Restore(t.Context(), bytes.NewReader(accepted[0].data), name, nar.RestoreOptions{}); err == nil {
			t.Errorf("restored at %q", name)
		}
	}
}

func TestRestoreCancelled(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stopped")
	r, w := io.Pipe()
	go func() {
		data := archive("(", "type", "regular", "contents", "=1073741824")
		for n, err := 0, error(nil); err == nil; n++ {
			if _, err = w.Write(data); n == 20 {
				cancel(stop)
			}
			data = make([]byte, 64<<10)
		}
	}()
	err := nar.Restore(ctx, r, filepath.Join(t.TempDir(), "x"), nar.RestoreOptions{})
	r.Close()
	var early *nar.BrokenError
	if !errors.Is(err, stop) || !errors.As(err, &early) || early.Offset < 64<<10 {
		t.Errorf("got %v, want the cause and how far it came", err)
	}
}

func TestDumpErrors(t *testing.T) {
	dir := t.TempDir()
	check(t, syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o644))
	deep := t.TempDir()
	makeTooDeep(t, deep)
	for _, test := range []struct {
		path, names string
		want        error
	}{
		{dir, filepath.Join(dir, "fifo"), nar.ErrSpecial},
		{filepath.Join(dir, "fifo"), filepath.Join(dir, "fifo"), nar.ErrSpecial},
		{"/dev/null", "/dev/null", nar.ErrSpecial},
		{filepath.Join(dir, "none"), filepath.Join(dir, "none"), fs.ErrNotExist},
		{deep, strings.Repeat("/"+strings.Repeat("d", 63), nar.MaxDepth) + "/dd", nar.ErrTooDeep},
	} {
		err := nar.Dump(t.Context(), io.Discard, test.path)
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.names+":") {
			t.Errorf("Dump of %s: got %v, want %v", test.path, err, test.want)
		}
		if _, err := nar.Size(t.Context(), test.path); !errors.Is(err, test.want) {
			t.Errorf("Size of %s: got %v, want %v", test.path, err, test.want)
		}
	}
	if err := nar.Dump(t.Context(), failingWriter{io.EOF}, makeTree(t)); err != io.EOF {
		t.Errorf("writer's error: got %v, want it as it is", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := nar.Dump(ctx, io.Discard, makeTree(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

// TestDumpChanged changes the size of a file while it is dumped.
func TestDumpChanged(t *testing.T) {
	for name, size := range map[string]int64{"shrunk": 600 << 10, "grown": 3 << 20} {
		path := filepath.Join(t.TempDir(), name)
		check(t, os.WriteFile(path, make([]byte, 2<<20), 0o644))
		w := writerFunc(func(p []byte) (int, error) { return len(p), os.Truncate(path, size) })
		err := nar.Dump(t.Context(), w, path)
		if !errors.Is(err, nar.ErrChanged) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want ErrChanged", name, err)
		}
	}
	// The files of /proc say that they are empty.
	if err := nar.Dump(t.Context(), io.Discard, "/proc/self/status"); err != nil && !errors.Is(err, nar.ErrChanged) && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("small file: got %v, want ErrChanged", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestManyFiles(t *testing.T) {
	count := 100000
	if testing.Short() {
		count = 5000
	}
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	check(t, w.Directory(""))
	for i := range count {
		check(t, w.Regular(fmt.Sprintf("%06d", i), false, 0))
	}
	check(t, w.Close())
	dest := filepath.Join(t.TempDir(), "x")
	limitFiles(t, 200)
	check(t, nar.Restore(t.Context(), bytes.NewReader(b.Bytes()), dest, nar.RestoreOptions{Canonical: true}))
	if !bytes.Equal(dump(t, dest), b.Bytes()) {
		t.Error("the tree has another archive")
	}
	check(t, nar.RemoveAll(dest))
}

// limitFiles lets the test have n files open.
func limitFiles(t *testing.T, n uint64) {
	t.Helper()
	var limit syscall.Rlimit
	check(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	low := limit
	low.Cur = n
	check(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low))
	t.Cleanup(func() { syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) })
}

// TestManyDumps has more Dumps at once than all can read ahead.
func TestManyDumps(t *testing.T) {
	dir := t.TempDir()
	for i := range 400 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), bytes.Repeat([]byte{byte(i)}, 1000*(i%50)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var want bytes.Buffer
	if err := nar.Dump(t.Context(), &want, dir); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var dumps sync.WaitGroup
		for range 30 {
			dumps.Go(func() {
				var got bytes.Buffer
				if err := nar.Dump(t.Context(), &got, dir); err != nil || !bytes.Equal(got.Bytes(), want.Bytes()) {
					t.Errorf("a dump differs, or %v", err)
				}
			})
		}
		dumps.Wait()
	}
}

// TestManyDirectories has more directories with pending files than may be open.
func TestManyDirectories(t *testing.T) {
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	check(t, w.Directory(""))
	for i := range 3000 {
		check(t, w.Directory(fmt.Sprintf("%04d", i)))
		check(t, w.Regular(fmt.Sprintf("%04d/f", i), true, 0))
	}
	check(t, w.Close())
	limitFiles(t, 350)
	dest := filepath.Join(t.TempDir(), "x")
	check(t, nar.Restore(t.Context(), bytes.NewReader(b.Bytes()), dest, nar.RestoreOptions{Canonical: true}))
	if !bytes.Equal(dump(t, dest), b.Bytes()) {
		t.Error("the tree has another archive")
	}
	check(t, nar.RemoveAll(dest))
}

func TestRemoveAllFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "precious"), nil, 0o444))
	tree := filepath.Join(dir, "tree")
	check(t, os.MkdirAll(filepath.Join(tree, "a/b"), 0o755))
	check(t, os.Symlink(dir, filepath.Join(tree, "a/b/link")))
	check(t, os.Chmod(filepath.Join(tree, "a"), 0o555))
	check(t, os.Symlink(dir, filepath.Join(dir, "link")))
	for _, name := range []string{"tree", "link", "none", "none/x"} {
		check(t, nar.RemoveAll(filepath.Join(dir, name)))
	}
	list, err := os.ReadDir(dir)
	check(t, err)
	if len(list) != 1 || list[0].Name() != "precious" {
		t.Errorf("left: %v", list)
	}
}

func TestHasher(t *testing.T) {
	for _, processors := range []int{1, 4} {
		t.Run(fmt.Sprintf("%d processors", processors), func(t *testing.T) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(processors))
			testHasher(t)
		})
	}
}

func testHasher(t *testing.T) {
	for _, size := range []int{0, 1, 128 << 10, 128<<10 + 1, 3<<20 + 5} {
		data := bytes.Repeat([]byte("abc"), size/3+1)[:size]
		h := nar.NewHasher(sha256.New())
		for rest := data; len(rest) > 0; {
			n := min(len(rest), 50001)
			h.Write(rest[:n])
			rest = rest[n:]
		}
		for range 2 {
			if got, want := h.Sum(), sha256.Sum256(data); !bytes.Equal(got, want[:]) {
				t.Errorf("%d bytes: got %x, want %x", size, got, want)
			}
		}
		h.Write(data)
		if got, want := h.Sum(), sha256.Sum256(append(bytes.Clone(data), data...)); !bytes.Equal(got, want[:]) {
			t.Errorf("%d bytes, twice: got %x, want %x", size, got, want)
		}
	}
}

package localstore_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// memoryLimit is what a process may take: 64 MiB, in KiB.
const memoryLimit = 64 << 10

const (
	manyPaths = 30_000  // in a database
	hugeFile  = 1 << 29 // bytes
)

// TestMemory checks that neither a large file nor many paths take much memory.
func TestMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector takes its own memory")
	}
	root := tempDir(t)
	fill(t, root)
	s := openStore(t, localstore.Under(root))
	if err := localstore.Register(t.Context(), s, madeUp(manyPaths, 5000, 9)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ask for closures", "import many", "import huge"} {
		t.Run(name, func(t *testing.T) {
			out, err := helper(name, root).CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			var kib int
			if _, err := fmt.Sscanf(string(out), "VmHWM: %d kB", &kib); err != nil {
				harness.Unavailable(t, err)
			}
			t.Logf("%d MiB", kib>>10)
			if kib > memoryLimit {
				t.Errorf("the process took %d MiB", kib>>10)
			}
		})
	}
}

// printMemory prints the line of /proc that tells the most memory that this process
// ever had. (What a parent learns of it includes the parent's own.)
func printMemory() {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return
	}
	for line := range bytes.Lines(status) {
		if bytes.HasPrefix(line, []byte("VmHWM")) {
			os.Stdout.Write(line)
		}
	}
}

func closuresHelper(root string) error {
	defer printMemory()
	ctx := context.Background()
	s, err := localstore.Open(ctx, localstore.Under(root))
	if err != nil {
		return err
	}
	infos := madeUp(5000, 5000, 9)
	closure, err := s.Closure(ctx, []nix.StorePath{infos[4999].Path})
	if err == nil && len(closure) != 5000 {
		err = fmt.Errorf("the closure has %d paths", len(closure))
	}
	return errors.Join(err, s.Close())
}

func importManyHelper(root string) error {
	defer printMemory()
	ctx := context.Background()
	s, err := localstore.Open(ctx, localstore.Under(root))
	if err != nil {
		return err
	}
	im := s.NewImport(localstore.ImportOptions{})
	var last nix.StorePath
	for i := range 3000 {
		var refs []nix.StorePath
		if i > 0 {
			refs = append(refs, last)
		}
		o := nixtest.Source(fmt.Sprint("tiny-", i), nixtest.Node{Content: fmt.Sprint(i)}, refs...)
		last = o.Info.Path
		err = errors.Join(err, im.Add(ctx, o.Info, bytes.NewReader(o.NAR), func(bad error) {
			if bad != nil {
				panic(bad)
			}
		}))
	}
	return errors.Join(err, im.Close(), s.Close())
}

// writeHuge writes the NAR of a huge file.
func writeHuge(w io.Writer) error {
	out := nar.NewWriter(w)
	if err := out.Regular("", false, hugeFile); err != nil {
		return err
	}
	block := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	for range hugeFile / len(block) {
		if _, err := out.Write(block); err != nil {
			return err
		}
	}
	return out.Close()
}

func importHugeHelper(root string) error {
	defer printMemory()
	ctx := context.Background()
	s, err := localstore.Open(ctx, localstore.Under(root))
	if err != nil {
		return err
	}
	h := sha256.New()
	size := new(countingWriter)
	if err := writeHuge(io.MultiWriter(h, size)); err != nil {
		return err
	}
	info := nixtest.Chain(1)[0].Info
	info.CA, info.NARHash, info.NARSize = "", nix.SHA256Hash([sha256.Size]byte(h.Sum(nil))), size.n
	contents, w := io.Pipe()
	go func() { w.CloseWithError(writeHuge(w)) }()
	im := s.NewImport(localstore.ImportOptions{})
	verdict := errors.New("undecided")
	err = im.Add(ctx, info, contents, func(err error) { verdict = err })
	err = errors.Join(err, im.Close(), verdict)
	hashErr := s.Verify(ctx, []nix.StorePath{info.Path}, func(_ nix.StorePath, bad error) { err = errors.Join(err, bad) })
	return errors.Join(err, hashErr, s.Close())
}

type countingWriter struct{ n int64 }

func (w *countingWriter) Write(p []byte) (int, error) {
	w.n += int64(len(p))
	return len(p), nil
}

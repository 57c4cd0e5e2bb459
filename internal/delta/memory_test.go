package delta_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/delta"
)

// memoryLimit is what a process may take that encodes and decodes at once: 128 MiB,
// in KiB.
const memoryLimit = 128 << 10

const hugeSize = 2 << 30 // bytes of a file

func TestMain(m *testing.M) {
	if os.Getenv("DELTA_TEST_HUGE") == "" {
		os.Exit(m.Run())
	}
	if err := huge(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	printMemory()
}

// TestMemory encodes and decodes a file of 2 GiB in another process.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	self, err := os.Executable()
	check(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "DELTA_TEST_HUGE=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var kib int
	if _, err := fmt.Sscanf(string(out), "VmHWM: %d kB", &kib); err != nil {
		harness.Unavailable(t, err)
	}
	t.Logf("%d MiB", kib>>10)
	if kib > memoryLimit && !raceEnabled {
		t.Errorf("the process took %d MiB", kib>>10)
	}
}

// printMemory prints the line of /proc that tells the most memory that this process
// ever had.
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

// huge makes a delta of a huge archive in which something is replaced and moved
// every 64 MiB, and decodes it.
func huge() error {
	base := virtual{archive(file{"f", nil})[:hugeHead], hugeSize}
	binary.LittleEndian.PutUint64(base.head[hugeHead-8:], hugeSize)
	tail := archive()[len(archive())-16:] // of a directory
	tail = bytes.Repeat(tail, 3)
	parts := []io.Reader{bytes.NewReader(base.head)}
	for at := int64(0); at < hugeSize; at += 64 << 20 {
		parts = append(parts, bytes.NewReader(noise(uint64(at), 64)),
			io.NewSectionReader(base, hugeHead+at+32+at>>26%2*8, 64<<20-64))
	}
	parts = append(parts, bytes.NewReader(tail))
	sent, received := sha256.New(), sha256.New()
	r, w := io.Pipe()
	failed := make(chan error, 1)
	go func() {
		stats, err := delta.Encode(w, base, delta.Mapping{}, io.TeeReader(io.MultiReader(parts...), sent), delta.Options{})
		if err == nil && stats.Delta > 1<<20 {
			err = fmt.Errorf("a delta of %d bytes", stats.Delta)
		}
		w.CloseWithError(err)
		failed <- err
	}()
	size := int64(hugeHead + hugeSize + len(tail))
	if err := errors.Join(delta.Decode(received, base, delta.Mapping{}, r, size), <-failed); err != nil {
		return err
	}
	return same(sent, received)
}

func same(a, b hash.Hash) error {
	if !bytes.Equal(a.Sum(nil), b.Sum(nil)) {
		return errors.New("decoded to another archive")
	}
	return nil
}

const hugeHead = 232 // bytes of an archive before the contents of a file "f"

// A virtual archive has a head, and then bytes that are made as they are read.
type virtual struct {
	head []byte
	size int64
}

func (v virtual) Size() int64 { return int64(len(v.head)) + v.size }

func (v virtual) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	if off < int64(len(v.head)) {
		n = copy(p, v.head[off:])
	}
	for n < len(p) && off+int64(n) < v.Size() {
		at := off + int64(n)
		x := uint64(at/8) * 0x9e3779b97f4a7c15
		x = (x ^ x>>29) * 0xbf58476d1ce4e5b9
		word := binary.LittleEndian.AppendUint64(nil, x^x>>32)[at%8:]
		n += copy(p[n:], word[:min(int64(len(word)), v.Size()-at)])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

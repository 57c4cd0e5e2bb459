package remote

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/nix"
)

// TestSpoolLeavesSpace fills a small disk for temporary files.
func TestSpoolLeavesSpace(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64M"); err != nil {
		harness.Unavailable(t, err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	t.Setenv("TMPDIR", dir)
	s, err := newSpool()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	chunk := make([]byte, 1<<20)
	for range 64 {
		if _, err = s.Write(chunk); err != nil {
			break
		}
	}
	if !errors.Is(err, nix.ErrNoSpace) {
		t.Errorf("got %v", err)
	}
}

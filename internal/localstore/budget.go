package localstore

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/copy-closure/copy-closure/internal/nix"
)

const (
	// maxPending is how many bytes of memory the paths of an import may take that are not
	// decided, most of which wait for their references.
	maxPending = 256 << 20
	doneMemory = 256 // of a further Add of the same path

	// reservedSpace is left free on the disk, as Nix does for the database, or the
	// hundredth of a small one.
	reservedSpace = 8 << 20
)

// charge counts memory of an entry. The caller holds im.mu.
func (im *Import) charge(e *entry, bytes int) error {
	if im.pending+bytes > maxPending {
		return fmt.Errorf("the %d paths that are on their way or wait for their references take more than %d MiB of memory", len(im.entries), maxPending>>20)
	}
	im.pending += bytes
	e.memory += bytes
	return nil
}

// A reservation is the space on the disk for a NAR that is being read. It reads the NAR.
type reservation struct {
	in    io.Reader
	store *Store
	left  int64 // bytes that were not read
}

// reserve refuses a NAR for which the disk has no room beside those that are being read.
func (s *Store) reserve(in *input) (*reservation, error) {
	r := &reservation{in, s, in.left}
	announced := s.announced.Add(r.left)
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(s.dir.Fd()), &st); err != nil || sharesSpace(&st) {
		return r, nil // the disk itself will tell
	}
	free := int64(st.Bavail * uint64(st.Bsize))
	if spare := min(reservedSpace, int64(st.Blocks*uint64(st.Bsize))/100); announced > free-spare {
		r.release()
		return nil, fmt.Errorf("%w: its NAR takes %d MiB, and %d MiB are free", nix.ErrNoSpace, in.left>>20, free>>20)
	}
	return r, nil
}

func (r *reservation) Read(p []byte) (int, error) {
	n, err := r.in.Read(p)
	r.left -= int64(n)
	r.store.announced.Add(int64(-n))
	return n, err
}

// release gives back what was not read.
func (r *reservation) release() {
	r.store.announced.Add(-r.left)
	r.left = 0
}

package nar

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// A Mark tells the state of a tree from others without reading its files: it covers all
// names and links, and of each file device, inode, mode, size and the times of its last
// changes, as they were when it had been read. Two Dumps that return the same Mark have
// written the same archive, if nothing has changed shortly before the first: see Settled.
type Mark struct {
	sum    [sha256.Size]byte
	newest int64 // when a file was changed last, in nanoseconds since 1970
}

// Settled reports whether all changes came so long before t that a later one is sure to
// have another time, however coarse those of the file system are.
func (m Mark) Settled(t time.Time) bool {
	const coarse = 2 * time.Second
	return m.newest < t.Add(-coarse).UnixNano()
}

// DumpMarkedAt is DumpAt, and marks what it has read.
func DumpMarkedAt(ctx context.Context, w io.Writer, dir *os.File, name string) (Mark, error) {
	path := filepath.Join(dir.Name(), name)
	if err := checkName(name); err != nil {
		return Mark{}, pathError("dump", path, err)
	}
	defer runtime.KeepAlive(dir)
	m := &marker{hash: sha256.New()}
	err := dump(ctx, w, int(dir.Fd()), name, path, m)
	return Mark{[sha256.Size]byte(m.hash.Sum(nil)), m.newest}, err
}

// A marker makes a Mark of what segments have noted down.
type marker struct {
	hash   hash.Hash
	newest int64
}

func (m *marker) add(s *segment) {
	m.hash.Write(s.notes)
	m.newest = max(m.newest, s.newest)
}

// note notes down a name or the target of a link.
func (s *segment) note(text string) {
	if s.marked {
		s.notes = binary.AppendUvarint(s.notes, uint64(len(text)))
		s.notes = append(s.notes, text...)
	}
}

// noteFile notes down a file that has been read.
func (s *segment) noteFile(fd int) error {
	if !s.marked {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	s.notes = append(s.notes, 0) // a link has a target here
	for _, n := range []int64{
		int64(st.Dev), int64(st.Ino), int64(st.Mode), st.Size, st.Mtim.Nano(), st.Ctim.Nano(),
	} {
		s.notes = binary.LittleEndian.AppendUint64(s.notes, uint64(n))
	}
	s.newest = max(s.newest, st.Mtim.Nano(), st.Ctim.Nano())
	return nil
}

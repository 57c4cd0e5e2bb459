package remote

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// spoolStep is how much is written between two looks at the free space.
const spoolStep = 16 << 20

// A spool is a file without a name, for contents whose size is not known before their end.
// Writing fails when it has left a tenth of the disk or less to everybody else.
type spool struct {
	*os.File
	sinceLook int
}

func newSpool() (*spool, error) {
	f, err := os.CreateTemp("", "copy-closure-import-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &spool{File: f}, nil
}

// Write implements io.Writer.
func (s *spool) Write(p []byte) (int, error) {
	if s.sinceLook += len(p); s.sinceLook >= spoolStep {
		s.sinceLook = 0
		if err := s.checkSpace(); err != nil {
			return 0, err
		}
	}
	return s.File.Write(p)
}

// ReadFrom hides that of the file, which would not look at the free space.
func (s *spool) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{s}, r)
}

func (s *spool) checkSpace() error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(s.Fd()), &st); err != nil {
		return nil // writing will tell
	}
	if uint64(st.Bavail) < st.Blocks/10 {
		return fmt.Errorf("%w: less than a tenth of the disk for temporary files is free", nix.ErrNoSpace)
	}
	return nil
}

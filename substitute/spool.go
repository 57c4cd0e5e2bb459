package substitute

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A spool is a file for what has to be complete before its name in the cache is known.
type spool struct {
	file *os.File // nil when home has it
	hash hash.Hash
	size int64
	home spoolHome // nil: the contents have to be copied into the cache
}

// A spoolHome is a cache in which files can lie before they have a name there.
type spoolHome interface {
	// Create makes a file for one that will be in dir.
	Create(dir string) (*os.File, error)
	// Place does what Put does, with a file that Create has made. Whether or not it
	// succeeds, f is closed, and nowhere but in its place.
	Place(ctx context.Context, f *os.File, name string) error
}

// newSpool makes one for a file in a directory of a cache: there, if it can lie there,
// or else in the directory for temporary files.
func newSpool(files WritableFiles, dir string) (s *spool, err error) {
	s = &spool{hash: sha256.New()}
	if home, ok := files.(spoolHome); ok {
		s.home = home
		s.file, err = home.Create(dir)
		return s, err
	}
	if s.file, err = os.CreateTemp("", temporaryPrefix+"*"); err != nil {
		return nil, err
	}
	if err := os.Remove(s.file.Name()); err != nil {
		return nil, errors.Join(err, s.file.Close())
	}
	return s, nil
}

// Write implements io.Writer.
func (s *spool) Write(p []byte) (int, error) {
	n, err := s.file.Write(p)
	s.hash.Write(p[:n])
	s.size += int64(n)
	switch {
	case err == nil:
	case s.home != nil:
		err = nix.CheckNoSpace(err)
	default:
		err = fmt.Errorf("write a temporary file in %s, which TMPDIR can change: %w", os.TempDir(), err)
	}
	return n, err
}

// sum is the hash of what was written.
func (s *spool) sum() nix.Hash { return nix.SHA256Hash([sha256.Size]byte(s.hash.Sum(nil))) }

// put makes the contents a file of the cache that it is for.
func (s *spool) put(ctx context.Context, files WritableFiles, name string) error {
	if s.home == nil {
		return files.Put(ctx, name, io.NewSectionReader(s.file, 0, s.size), s.size)
	}
	f := s.file
	s.file = nil
	return s.home.Place(ctx, f, name)
}

// close gives the room back.
func (s *spool) close() error {
	if s == nil || s.file == nil {
		return nil
	}
	if s.home != nil {
		return discard(s.file)
	}
	return s.file.Close()
}

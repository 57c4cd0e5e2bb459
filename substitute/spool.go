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

// A spool is a file without a name, for what has to be complete before its name in
// the cache is known. It goes with its process.
type spool struct {
	file *os.File
	hash hash.Hash
	size int64
}

// newSpool makes one in the directory for temporary files.
func newSpool() (*spool, error) {
	f, err := os.CreateTemp("", temporaryPrefix+"*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &spool{file: f, hash: sha256.New()}, nil
}

// Write implements io.Writer.
func (s *spool) Write(p []byte) (int, error) {
	n, err := s.file.Write(p)
	s.hash.Write(p[:n])
	s.size += int64(n)
	if err != nil {
		err = fmt.Errorf("write a temporary file in %s, which TMPDIR can change: %w", os.TempDir(), err)
	}
	return n, err
}

// sum is the hash of what was written.
func (s *spool) sum() nix.Hash { return nix.SHA256Hash([sha256.Size]byte(s.hash.Sum(nil))) }

// put makes the contents a file of a cache.
func (s *spool) put(ctx context.Context, files WritableFiles, name string) error {
	return files.Put(ctx, name, io.NewSectionReader(s.file, 0, s.size), s.size)
}

// close gives the room back.
func (s *spool) close() error {
	if s == nil {
		return nil
	}
	return s.file.Close()
}

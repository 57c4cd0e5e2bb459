package remote

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// importPaths takes an export stream, the way of clients older than version 2.5.
// A path's name and references stand behind its contents, which therefore wait
// in a temporary file.
func (s *server) importPaths(ctx context.Context) error {
	if err := s.mayWrite("import paths"); err != nil {
		return err
	}
	spool, err := newSpool()
	if err != nil {
		return fmt.Errorf("import paths: %w", err)
	}
	defer spool.Close()
	for {
		switch more := s.in.Uint64(); {
		case s.in.Err() != nil:
			return s.request("import paths")
		case more == 0:
			if err := s.settle(); err != nil {
				return err
			}
			s.out.Uint64(1)
			return nil
		case more != 1:
			return &wire.FormatError{Msg: "what is imported is no export stream"}
		}
		if err := s.importPath(ctx, spool); err != nil {
			return err
		}
	}
}

func (s *server) importPath(ctx context.Context, spool *spool) error {
	if err := rewind(spool); err != nil {
		return fmt.Errorf("import a path: %w", err)
	}
	hash := nar.NewHasher(sha256.New())
	size, err := nar.Copy(io.MultiWriter(spool, hash), s.in.Raw())
	sum := hash.Sum()
	if err != nil {
		return fmt.Errorf("import a path: %w", err)
	}
	if magic := s.in.Uint64(); s.in.Err() == nil && magic != exportMagic {
		return &wire.FormatError{Msg: "what is imported is no export stream"}
	}
	info := &nix.PathInfo{
		Path:       s.in.Path(s.dir),
		NARHash:    nix.SHA256Hash([sha256.Size]byte(sum)),
		NARSize:    size,
		References: s.in.Paths(s.dir, wire.MaxReferences),
		Deriver:    s.in.OptionalPath(s.dir),
	}
	info.SortReferences()
	if s.in.Bool() {
		s.in.String(wire.MaxField) // a signature in the old form, which nobody checks
	}
	if err := s.request("import paths"); err != nil {
		return err
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("import %s: %w", info.Path, err)
	}
	return s.add(ctx, info, spool, false)
}

func rewind(f *spool) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.Seek(0, io.SeekStart)
	return err
}

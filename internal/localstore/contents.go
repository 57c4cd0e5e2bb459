package localstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
)

// WriteNAR writes the contents of the valid path p to w. They are not compared
// with what the database promises. Part of them may have been written when it
// fails; the error wraps nix.ErrNotValid if p is not valid.
func (s *Store) WriteNAR(ctx context.Context, w io.Writer, p nix.StorePath) error {
	if err := s.checkValid(ctx, p); err != nil {
		return err
	}
	return s.dump(ctx, w, p)
}

// WriteMarkedNAR is WriteNAR, and marks the state of what it has read.
func (s *Store) WriteMarkedNAR(ctx context.Context, w io.Writer, p nix.StorePath) (mark nar.Mark, err error) {
	if err := s.checkValid(ctx, p); err != nil {
		return mark, err
	}
	mark, err = nar.DumpMarkedAt(ctx, w, s.dir, p.Base())
	return mark, damaged(err)
}

// OpenArchive returns the NAR of the valid path p, to be read anywhere. The error
// wraps nix.ErrNotValid if p is not valid.
func (s *Store) OpenArchive(ctx context.Context, p nix.StorePath) (*nar.Tree, error) {
	if err := s.checkValid(ctx, p); err != nil {
		return nil, err
	}
	return nar.IndexAt(ctx, s.dir, p.Base())
}

// checkValid returns an error that wraps nix.ErrNotValid if p is not valid.
func (s *Store) checkValid(ctx context.Context, p nix.StorePath) error {
	valid, err := s.ValidPaths(ctx, []nix.StorePath{p})
	if err == nil && len(valid) == 0 {
		err = fmt.Errorf("%s: %w", p, nix.ErrNotValid)
	}
	return err
}

func (s *Store) dump(ctx context.Context, w io.Writer, p nix.StorePath) error {
	return damaged(nar.DumpAt(ctx, w, s.dir, p.Base()))
}

// damaged says so of a path that is valid and not there as a tree.
func damaged(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, nar.ErrSpecial) {
		// The database promises something else.
		err = fmt.Errorf("%w: %w", nix.ErrDamaged, err)
	}
	return err
}

// Verify hashes the contents of paths, of all valid paths if paths is nil, and
// calls report for each: with nil, or with an error that wraps nix.ErrDamaged
// where they are not what the database promises, or are a derivation that claims
// outputs which do not follow from it. It returns an error if it could not go on.
func (s *Store) Verify(ctx context.Context, paths []nix.StorePath, report func(nix.StorePath, error)) error {
	if paths == nil {
		var err error
		if paths, err = s.AllPaths(ctx); err != nil {
			return err
		}
	}
	for _, p := range paths {
		err := s.verify(ctx, p)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		report(p, err)
	}
	return nil
}

func (s *Store) verify(ctx context.Context, p nix.StorePath) error {
	info, err := s.PathInfo(ctx, p)
	if err != nil {
		return err
	}
	if err := s.checkContents(ctx, info); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	if p.IsDerivation() {
		return s.newDrvChecker(ctx).check(p)
	}
	return nil
}

// checkContents compares contents with what info promises.
func (s *Store) checkContents(ctx context.Context, info *nix.PathInfo) error {
	out := &hashedOutput{hasher: nar.NewHasher(sha256.New())}
	err := s.dump(ctx, out, info.Path)
	sum := out.hasher.Sum()
	if err != nil {
		return err
	}
	return info.CheckNAR(nix.SHA256Hash([sha256.Size]byte(sum)), out.size)
}

// A hashedOutput hashes and counts what is written to it.
type hashedOutput struct {
	hasher *nar.Hasher
	size   int64
}

func (o *hashedOutput) Write(p []byte) (int, error) {
	o.size += int64(len(p))
	return o.hasher.Write(p)
}

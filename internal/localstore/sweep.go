package localstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
)

const maxTempRoots = 256 << 20 // bytes of one process's file

// sweepDead clears away what processes have left that were killed while they took
// paths in: locks, and contents that never became valid. Their temporary roots say
// where to look, and nobody else may be at work on a path whose lock we get. It is a
// courtesy: what cannot be cleared away is left to whoever adds the path next. Contents
// without a lock are those of an import that has given their locks up for a while; they
// are cleared away, too, unless a living process has a temporary root for them.
//
// Nothing else here deletes the temporary roots of the dead, and they keep a second name
// for where Nix does (see keepTempRoots).
func (s *Store) sweepDead(ctx context.Context) {
	for _, dir := range []string{s.config.state("temproots"), s.importsDir()} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Debug("cannot look for what processes have left that died", "error", err)
		}
		for _, entry := range entries {
			path := filepath.Join(dir, entry.Name())
			err := s.visitTempRoots(path, func(f *os.File) error { return s.sweepRoots(ctx, f) }, nil)
			if err != nil {
				s.log.Debug("cannot clear away what a process has left that died", "roots", path, "error", err)
			}
		}
	}
}

// visitTempRoots opens one file of temporary roots. If its process lives, it calls alive;
// otherwise it calls dead with the file locked, and then deletes the file. A nil function
// is not called, and a file of the dead without one stays.
func (s *Store) visitTempRoots(path string, dead, alive func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	visit := alive
	locked, err := tryFlock(f, unix.LOCK_EX)
	if locked {
		visit = dead
	}
	if err == nil && visit != nil {
		err = visit(f)
	}
	if err == nil && locked && dead != nil {
		return (&fileLock{f}).release()
	}
	return errors.Join(err, f.Close())
}

// readTempRoots reads an open file of temporary roots, whose process may delete it at
// any time.
func (s *Store) readTempRoots(f *os.File) ([]nix.StorePath, error) {
	text, err := io.ReadAll(io.LimitReader(f, maxTempRoots+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxTempRoots {
		return nil, fmt.Errorf("%s is larger than %d MiB: no list of temporary roots", f.Name(), maxTempRoots>>20)
	}
	if len(text) > 0 && text[0] == 'd' {
		text[0] = '/' // written over by Nix, which has deleted the file's first name
	}
	var paths []nix.StorePath
	for root := range bytes.SplitSeq(text, []byte{0}) {
		if p, err := s.config.StoreDir.Parse(string(root)); err == nil {
			paths = append(paths, p)
		}
	}
	return paths, nil
}

// sweepRoots clears away what the process has left that had these temporary roots.
func (s *Store) sweepRoots(ctx context.Context, f *os.File) error {
	paths, err := s.readTempRoots(f)
	if err != nil {
		return err
	}
	var unlocked []nix.StorePath
	for _, p := range paths {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := s.sweepAside(p, f.Name()); err != nil {
			return err
		}
		if _, err := os.Lstat(s.RealPath(p) + ".lock"); err != nil {
			unlocked = append(unlocked, p)
		} else if err := s.sweepPath(ctx, p, nil); err != nil {
			return err
		}
	}
	return s.sweepUnlocked(ctx, f, unlocked)
}

// sweepUnlocked deletes those of paths that are not valid. An error says that somebody may
// be at work on some of them, so that f, which names them, must stay.
func (s *Store) sweepUnlocked(ctx context.Context, f *os.File, paths []nix.StorePath) error {
	ids, err := s.pathIDs(ctx, paths)
	if err != nil {
		return err
	}
	left := make(map[nix.StorePath]inode)
	for i, p := range paths {
		if found, err := s.inode(p); err == nil && ids[i] == 0 {
			left[p] = found
		}
	}
	if len(left) == 0 {
		return nil
	}
	// Who takes a root after this changes the inode before the lock is free.
	alive := make(roots)
	if err := s.findTempRoots(alive, f); err != nil {
		return err
	}
	for p, found := range left {
		if by, rooted := alive[p]; rooted {
			err = errors.Join(err, fmt.Errorf("%s is held by %s", p, by))
		} else {
			err = errors.Join(err, s.sweepPath(ctx, p, &found))
		}
	}
	return err
}

// sweepPath deletes the lock of a path, and the path if it is not valid, unless somebody
// holds the lock or the path's inode is no longer left, if that is not nil.
func (s *Store) sweepPath(ctx context.Context, p nix.StorePath, left *inode) error {
	lock, err := tryFileLock(s.RealPath(p) + ".lock")
	if lock == nil || err != nil {
		return err
	}
	ids, err := s.pathIDs(ctx, []nix.StorePath{p})
	if err == nil && ids[0] == 0 && s.isStill(p, left) {
		err = nar.RemoveAllAt(s.dir, p.Base())
	}
	return errors.Join(err, lock.release())
}

func (s *Store) isStill(p nix.StorePath, left *inode) bool {
	now, err := s.inode(p)
	return left == nil || err == nil && now == *left
}

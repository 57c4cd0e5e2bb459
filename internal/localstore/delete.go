package localstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
	"zombiezen.com/go/sqlite"

	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
)

// An AliveError says that a path may not be deleted.
type AliveError struct {
	Path nix.StorePath
	By   string // the valid path or the root that needs it
}

func (e *AliveError) Error() string {
	return fmt.Sprintf("%s is still needed by %s", e.Path, e.By)
}

// Delete deletes valid paths that neither a root nor a valid path outside of paths
// refers to, and returns the bytes freed on the disk. Otherwise nothing is deleted
// and the error is an *AliveError, or wraps nix.ErrNotValid. Meanwhile it is, to
// others, a garbage collection.
func (s *Store) Delete(ctx context.Context, paths []nix.StorePath) (freed int64, err error) {
	if err := s.mayWrite(); err != nil {
		return 0, err
	}
	paths = slices.Clone(paths)
	slices.SortFunc(paths, nix.StorePath.Compare)
	paths = slices.Compact(paths)
	gcLock, err := os.OpenFile(s.config.state("gc.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, fmt.Errorf("delete: %w", err)
	}
	defer gcLock.Close()
	if err := flock(ctx, gcLock, unix.LOCK_EX); err != nil {
		return 0, fmt.Errorf("delete: %w", err)
	}
	collector, err := s.startCollector(paths)
	if err != nil {
		return 0, fmt.Errorf("delete: %w", err)
	}
	defer func() { err = errors.Join(err, collector.close()) }()
	s.sweepDead(ctx)
	return s.delete(ctx, paths)
}

// delete does it with the lock of the garbage collector.
func (s *Store) delete(ctx context.Context, paths []nix.StorePath) (freed int64, err error) {
	roots, err := s.findRoots(ctx)
	if err != nil {
		return 0, fmt.Errorf("find roots: %w", err)
	}
	for _, p := range paths {
		if root, ok := roots[p]; ok {
			return 0, &AliveError{p, root}
		}
	}
	// A power failure must not bring rows back whose files are gone.
	if err := s.db.writeDurably(ctx, func(conn *sqlite.Conn) error { return deleteRows(conn, paths) }); err != nil {
		return 0, err
	}
	// From here on they are garbage; what is not deleted now, Nix will.
	for _, p := range paths {
		freed += diskUsage(s.RealPath(p))
		if err := nar.RemoveAllAt(s.dir, p.Base()); err != nil {
			return freed, err
		}
	}
	return freed, nil
}

func deleteRows(conn *sqlite.Conn, paths []nix.StorePath) error {
	ids := make(map[int64]nix.StorePath, len(paths))
	for _, p := range paths {
		id, err := pathID(conn, p)
		if err != nil {
			return err
		}
		if id == 0 {
			return fmt.Errorf("%s: %w", p, nix.ErrNotValid)
		}
		ids[id] = p
	}
	for id, p := range ids {
		if err := checkReferrers(conn, id, p, ids); err != nil {
			return err
		}
	}
	for id := range ids {
		if err := deleteRealisationRefs(conn, id); err != nil {
			return err
		}
	}
	for _, query := range []string{"DELETE FROM Refs WHERE referrer = ?", "DELETE FROM ValidPaths WHERE id = ?"} {
		for id := range ids {
			if err := insertRow(conn, query, id); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkReferrers returns an error if a path that is not among ids refers to p.
func checkReferrers(conn *sqlite.Conn, id int64, p nix.StorePath, ids map[int64]nix.StorePath) error {
	stmt, err := conn.Prepare("SELECT v.id, v.path FROM Refs r JOIN ValidPaths v ON v.id = r.referrer WHERE r.reference = ?")
	if err != nil {
		return err
	}
	defer stmt.Reset()
	stmt.BindInt64(1, id)
	for {
		if more, err := stmt.Step(); err != nil || !more {
			return err
		}
		if _, ok := ids[stmt.ColumnInt64(0)]; !ok {
			return &AliveError{p, stmt.ColumnText(1)}
		}
	}
}

// diskUsage returns the bytes that deleting a tree frees, as far as it can be read.
func diskUsage(root string) (bytes int64) {
	filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // then it frees less than we know
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && (st.Nlink == 1 || d.IsDir()) {
			bytes += st.Blocks * 512
		}
		return nil
	})
	return bytes
}

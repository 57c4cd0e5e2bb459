package localstore

import (
	"context"
	"fmt"
	"strings"
	"time"

	"zombiezen.com/go/sqlite"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// ValidPaths returns those of paths that are valid, in the order asked.
func (s *Store) ValidPaths(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error) {
	ids, err := s.pathIDs(ctx, paths)
	if err != nil {
		return nil, err
	}
	var valid []nix.StorePath
	for i, p := range paths {
		if ids[i] != 0 {
			valid = append(valid, p)
		}
	}
	return valid, nil
}

// PathInfo returns what is known of p. The error wraps nix.ErrNotValid if p is
// not valid.
func (s *Store) PathInfo(ctx context.Context, p nix.StorePath) (*nix.PathInfo, error) {
	infos, err := s.PathInfos(ctx, []nix.StorePath{p})
	if err != nil {
		return nil, err
	}
	if len(infos) == 0 {
		return nil, fmt.Errorf("%s: %w", p, nix.ErrNotValid)
	}
	return infos[0], nil
}

// PathInfos returns the infos of those of paths that are valid, in the order asked.
func (s *Store) PathInfos(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error) {
	return s.queryInfos(ctx, func(g *graph) error {
		for _, p := range paths {
			if id, err := pathID(g.conn, p); err != nil {
				return err
			} else if id != 0 {
				g.add(id)
			}
		}
		return nil
	})
}

// PathInfoFromHashPart returns what is known of the path whose hash part is part.
// The error wraps nix.ErrNotValid if there is none.
func (s *Store) PathInfoFromHashPart(ctx context.Context, part string) (*nix.PathInfo, error) {
	var info *nix.PathInfo
	err := s.db.read(ctx, func(conn *sqlite.Conn) (err error) {
		info, err = infoFromHashPart(conn, s.config.StoreDir, part)
		return err
	})
	if err == nil && info == nil {
		err = fmt.Errorf("%s/%.32s…: %w", s.config.StoreDir, part, nix.ErrNotValid)
	}
	return info, err
}

// infoFromHashPart asks one question, references included; it returns nil if there
// is no such path.
func infoFromHashPart(conn *sqlite.Conn, dir nix.StoreDir, part string) (*nix.PathInfo, error) {
	stmt, err := conn.Prepare("SELECT " + infoColumns + `,
		(SELECT group_concat(path, ' ') FROM Refs JOIN ValidPaths r ON r.id = reference WHERE referrer = v.id)
		FROM ValidPaths v WHERE path >= ? ORDER BY path LIMIT 1`)
	if err != nil {
		return nil, err
	}
	defer stmt.Reset()
	prefix := string(dir) + "/" + part + "-"
	stmt.BindText(1, prefix)
	if found, err := stmt.Step(); err != nil || !found || !strings.HasPrefix(stmt.ColumnText(1), prefix) {
		return nil, err
	}
	info, err := readInfo(stmt, dir)
	if err != nil {
		return nil, err
	}
	for _, word := range strings.Fields(stmt.ColumnText(9)) {
		ref, err := dir.Parse(word)
		if err != nil {
			return nil, fmt.Errorf("reference of %s: %w", info.Path, err)
		}
		info.References = append(info.References, ref)
	}
	info.SortReferences()
	return info, nil
}

// Closure returns the infos of roots and of all that they refer to, in no order,
// each once. The error wraps nix.ErrNotValid and names the root if one is not
// valid.
func (s *Store) Closure(ctx context.Context, roots []nix.StorePath) ([]*nix.PathInfo, error) {
	return s.queryInfos(ctx, func(g *graph) error {
		for _, p := range roots {
			id, err := pathID(g.conn, p)
			if err != nil {
				return err
			}
			if id == 0 {
				return fmt.Errorf("%s: %w", p, nix.ErrNotValid)
			}
			g.add(id)
		}
		return g.close()
	})
}

// queryInfos returns the infos of what fill adds to a graph.
func (s *Store) queryInfos(ctx context.Context, fill func(*graph) error) ([]*nix.PathInfo, error) {
	var infos []*nix.PathInfo
	err := s.db.read(ctx, func(conn *sqlite.Conn) error {
		g, err := newGraph(conn, s.config.StoreDir)
		if err != nil {
			return err
		}
		if err := fill(g); err != nil {
			return err
		}
		infos, err = g.infos()
		return err
	})
	return infos, err
}

// pathID returns the row number of a path, 0 if it is not valid.
func pathID(conn *sqlite.Conn, p nix.StorePath) (int64, error) {
	stmt, err := conn.Prepare("SELECT id FROM ValidPaths WHERE path = ?")
	if err != nil {
		return 0, err
	}
	defer stmt.Reset()
	stmt.BindText(1, p.String())
	if found, err := stmt.Step(); err != nil || !found {
		return 0, err
	}
	return stmt.ColumnInt64(0), nil
}

// maxSeconds bounds the time of a registration; it is in the year 36812.
const maxSeconds = 1 << 40

// infoColumns are what readInfo reads.
const infoColumns = "id, path, hash, registrationTime, deriver, narSize, ultimate, sigs, ca"

// readInfo reads a row of infoColumns; the references are in another table.
func readInfo(stmt *sqlite.Stmt, dir nix.StoreDir) (*nix.PathInfo, error) {
	p, err := dir.Parse(stmt.ColumnText(1))
	if err != nil {
		return nil, fmt.Errorf("row %d: %w", stmt.ColumnInt64(0), err)
	}
	info := &nix.PathInfo{
		Path:       p,
		NARSize:    stmt.ColumnInt64(5),
		Ultimate:   stmt.ColumnInt64(6) == 1,
		Signatures: signaturesIn(stmt.ColumnText(7)),
		CA:         stmt.ColumnText(8),
	}
	if info.NARHash, err = nix.ParseHash(stmt.ColumnText(2)); err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	if seconds := stmt.ColumnInt64(3); seconds > 0 && seconds < maxSeconds {
		info.Registered = time.Unix(seconds, 0)
	}
	if deriver := stmt.ColumnText(4); deriver != "" {
		if info.Deriver, err = dir.Parse(deriver); err != nil {
			return nil, fmt.Errorf("deriver of %s: %w", p, err)
		}
	}
	return info, nil
}

// signaturesIn returns the signatures in a column, without those that are malformed or too
// many.
func signaturesIn(column string) (sigs []string) {
	for sig := range strings.FieldsSeq(column) {
		sigs = nix.AppendSignature(sigs, sig)
	}
	return sigs
}

// AllPaths returns all valid paths, sorted.
func (s *Store) AllPaths(ctx context.Context) ([]nix.StorePath, error) {
	var paths []nix.StorePath
	err := s.db.read(ctx, func(conn *sqlite.Conn) error {
		paths = nil
		stmt, err := conn.Prepare("SELECT path FROM ValidPaths ORDER BY path")
		if err != nil {
			return err
		}
		defer stmt.Reset()
		for {
			if more, err := stmt.Step(); err != nil || !more {
				return err
			}
			p, err := s.config.StoreDir.Parse(stmt.ColumnText(0))
			if err != nil {
				return err
			}
			paths = append(paths, p)
		}
	})
	return paths, err
}

// pathIDs returns the row numbers of paths, 0 for each that is not valid.
func (s *Store) pathIDs(ctx context.Context, paths []nix.StorePath) ([]int64, error) {
	ids := make([]int64, len(paths))
	err := s.db.read(ctx, func(conn *sqlite.Conn) error {
		for i, p := range paths {
			var err error
			if ids[i], err = pathID(conn, p); err != nil {
				return err
			}
		}
		return nil
	})
	return ids, err
}

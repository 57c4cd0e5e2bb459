package localstore

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"zombiezen.com/go/sqlite"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// Referrers returns the valid paths that refer to p, sorted; p itself may be one. There
// are none of a path that is not valid.
func (s *Store) Referrers(ctx context.Context, p nix.StorePath) ([]nix.StorePath, error) {
	return s.queryPaths(ctx, `SELECT path FROM ValidPaths WHERE id IN
		(SELECT referrer FROM Refs WHERE reference = (SELECT id FROM ValidPaths WHERE path = ?)) ORDER BY path`, p.String())
}

// PathOfHashPart returns the valid path with that hash part, zero if there is none.
func (s *Store) PathOfHashPart(ctx context.Context, part string) (nix.StorePath, error) {
	if _, err := s.config.StoreDir.ParseBase(part + "-name"); err != nil {
		return nix.StorePath{}, fmt.Errorf("hash part %q: %w", part, err)
	}
	first := string(s.config.StoreDir) + "/" + part
	paths, err := s.queryPaths(ctx, "SELECT path FROM ValidPaths WHERE path >= ? ORDER BY path LIMIT 1", first)
	if err != nil || len(paths) == 0 || paths[0].HashPart() != part {
		return nix.StorePath{}, err
	}
	return paths[0], nil
}

// queryPaths runs a query for paths with one text.
func (s *Store) queryPaths(ctx context.Context, query, text string) ([]nix.StorePath, error) {
	var paths []nix.StorePath
	err := s.db.read(ctx, func(conn *sqlite.Conn) error {
		paths = nil
		stmt, err := conn.Prepare(query)
		if err != nil {
			return err
		}
		defer stmt.Reset()
		stmt.BindText(1, text)
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

// AddSignatures adds to the signatures of a valid path those that it does not have.
// The error wraps nix.ErrNotValid if p is not valid.
func (s *Store) AddSignatures(ctx context.Context, p nix.StorePath, signatures []string) error {
	if err := s.mayWrite(); err != nil {
		return err
	}
	for _, signature := range signatures {
		if name, _, ok := strings.Cut(signature, ":"); !ok || name == "" || strings.ContainsAny(signature, " \t\n\x00") {
			return fmt.Errorf("sign %s: %q is no signature", p, signature)
		}
	}
	return s.db.write(ctx, func(conn *sqlite.Conn) error { return addSignatures(conn, p, signatures) })
}

func addSignatures(conn *sqlite.Conn, p nix.StorePath, signatures []string) error {
	stmt, err := conn.Prepare("SELECT sigs FROM ValidPaths WHERE path = ?")
	if err != nil {
		return err
	}
	defer stmt.Reset()
	stmt.BindText(1, p.String())
	if found, err := stmt.Step(); err != nil {
		return err
	} else if !found {
		return fmt.Errorf("sign %s: %w", p, nix.ErrNotValid)
	}
	all := append(strings.Fields(stmt.ColumnText(0)), signatures...)
	slices.Sort(all)
	return insertRow(conn, "UPDATE ValidPaths SET sigs = ? WHERE path = ?", strings.Join(slices.Compact(all), " "), p.String())
}

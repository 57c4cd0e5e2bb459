package localstore

import (
	"context"

	"zombiezen.com/go/sqlite"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// Referrers returns the valid paths that refer to p, sorted; p itself may be one. There
// are none of a path that is not valid.
func (s *Store) Referrers(ctx context.Context, p nix.StorePath) ([]nix.StorePath, error) {
	return s.queryPaths(ctx, `SELECT path FROM ValidPaths WHERE id IN
		(SELECT referrer FROM Refs WHERE reference = (SELECT id FROM ValidPaths WHERE path = ?)) ORDER BY path`, p.String())
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

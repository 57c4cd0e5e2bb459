package localstore

import (
	"context"

	"zombiezen.com/go/sqlite"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// ValidOutputs returns the outputs of valid derivations, as far as the outputs are
// valid, too.
func (s *Store) ValidOutputs(ctx context.Context, derivations []nix.StorePath) ([]nix.StorePath, error) {
	var outputs []nix.StorePath
	err := s.db.read(ctx, func(conn *sqlite.Conn) error {
		outputs = nil
		for _, drv := range derivations {
			list, err := outputsOf(conn, drv)
			if err != nil {
				return err
			}
			outputs = append(outputs, list...)
		}
		return nil
	})
	return outputs, err
}

func outputsOf(conn *sqlite.Conn, drv nix.StorePath) (outputs []nix.StorePath, err error) {
	stmt, err := conn.Prepare(`SELECT o.path FROM ValidPaths d
		JOIN DerivationOutputs o ON o.drv = d.id
		JOIN ValidPaths v ON v.path = o.path
		WHERE d.path = ? ORDER BY o.id`)
	if err != nil {
		return nil, err
	}
	defer stmt.Reset()
	stmt.BindText(1, drv.String())
	for {
		found, err := stmt.Step()
		if err != nil || !found {
			return outputs, err
		}
		p, err := drv.Dir().Parse(stmt.ColumnText(0))
		if err != nil {
			return nil, err
		}
		outputs = append(outputs, p)
	}
}

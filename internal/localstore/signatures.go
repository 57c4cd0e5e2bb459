package localstore

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"zombiezen.com/go/sqlite"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// AddSignatures adds to the signatures of a valid path those that it has not got,
// and returns how many. Nobody's signatures are checked. The error wraps
// nix.ErrNotValid if p is not valid.
func (s *Store) AddSignatures(ctx context.Context, p nix.StorePath, sigs []string) (added int, err error) {
	if err := s.mayWrite(); err != nil {
		return 0, err
	}
	for _, sig := range sigs {
		if name, _, ok := strings.Cut(sig, ":"); !ok || name == "" || strings.ContainsAny(sig, " \t\n\x00") {
			return 0, fmt.Errorf("sign %s: %q is no signature", p, sig)
		}
	}
	err = s.db.write(ctx, func(conn *sqlite.Conn) error {
		had, err := signatures(conn, p)
		if err != nil {
			return err
		}
		all := slices.Clone(had)
		for _, sig := range sigs {
			if !slices.Contains(all, sig) {
				all = append(all, sig)
			}
		}
		if added = len(all) - len(had); added == 0 {
			return nil
		}
		return insertRow(conn, "UPDATE ValidPaths SET sigs = ? WHERE path = ?", strings.Join(all, " "), p.String())
	})
	return added, err
}

func signatures(conn *sqlite.Conn, p nix.StorePath) ([]string, error) {
	stmt, err := conn.Prepare("SELECT sigs FROM ValidPaths WHERE path = ?")
	if err != nil {
		return nil, err
	}
	defer stmt.Reset()
	stmt.BindText(1, p.String())
	found, err := stmt.Step()
	if err == nil && !found {
		err = fmt.Errorf("%s: %w", p, nix.ErrNotValid)
	}
	return strings.Fields(stmt.ColumnText(0)), err
}

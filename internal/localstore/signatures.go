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
// and returns how many. Whether they are right is not checked. Of more than
// nix.MaxSignatures the oldest stay, and these. The error wraps nix.ErrNotValid if p is
// not valid.
func (s *Store) AddSignatures(ctx context.Context, p nix.StorePath, sigs []string) (added int, err error) {
	if err := s.mayWrite(); err != nil {
		return 0, err
	}
	for _, sig := range sigs {
		if err := nix.CheckSignature(sig); err != nil {
			return 0, fmt.Errorf("sign %s: %w", p, err)
		}
	}
	err = s.db.write(ctx, func(conn *sqlite.Conn) error {
		had, err := signatures(conn, p)
		if err != nil {
			return err
		}
		var fresh []string
		for _, sig := range sigs {
			if !slices.Contains(had, sig) {
				fresh = nix.AppendSignature(fresh, sig)
			}
		}
		if added = len(fresh); added == 0 {
			return nil
		}
		all := nix.MergeSignatures(had, fresh)
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
	return signaturesIn(stmt.ColumnText(0)), err
}

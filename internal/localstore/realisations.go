package localstore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// realisationTables are those that Nix makes in a store where the experimental feature
// ca-derivations is enabled, up to 2.34. Nix takes over those that it finds.
const realisationTables = `
create table if not exists Realisations (
    id integer primary key autoincrement not null,
    drvPath text not null,
    outputName text not null, -- symbolic output id, usually "out"
    outputPath integer not null,
    signatures text, -- space-separated list
    foreign key (outputPath) references ValidPaths(id) on delete cascade
);

create index if not exists IndexRealisations on Realisations(drvPath, outputName);

create trigger if not exists DeleteSelfRefsViaRealisations before delete on ValidPaths
  begin
    delete from RealisationsRefs where realisationReference in (
      select id from Realisations where outputPath = old.id
    );
  end;

create table if not exists RealisationsRefs (
    referrer integer not null,
    realisationReference integer,
    foreign key (referrer) references Realisations(id) on delete cascade,
    foreign key (realisationReference) references Realisations(id) on delete restrict
);

create index if not exists IndexRealisationsRefsRealisationReference on RealisationsRefs(realisationReference);
create index if not exists IndexRealisationsRefs on RealisationsRefs(referrer);
create index if not exists IndexRealisationsRefsOnOutputPath on Realisations(outputPath);
`

// Realisation returns what is known of an output. The error wraps nix.ErrNoRealisation where
// that is nothing.
func (s *Store) Realisation(ctx context.Context, id nix.DrvOutput) (r *nix.Realisation, err error) {
	err = s.db.read(ctx, func(conn *sqlite.Conn) error {
		r, _, err = s.realisation(conn, id)
		return err
	})
	return r, err
}

// realisation returns the id of its row, too.
func (s *Store) realisation(conn *sqlite.Conn, id nix.DrvOutput) (*nix.Realisation, int64, error) {
	unknown := fmt.Errorf("%s: %w", id, nix.ErrNoRealisation)
	if known, err := hasRealisations(conn); err != nil {
		return nil, 0, err
	} else if !known {
		return nil, 0, unknown
	}
	r := &nix.Realisation{ID: id, Dependencies: make(map[nix.DrvOutput]nix.StorePath)}
	var row int64
	err := sqlitex.Execute(conn, `SELECT r.id, path, signatures FROM Realisations r JOIN ValidPaths p ON p.id = outputPath
		WHERE drvPath = ? AND outputName = ? ORDER BY r.id DESC`, &sqlitex.ExecOptions{
		Args: []any{id.DrvText(), id.Output},
		ResultFunc: func(stmt *sqlite.Stmt) (err error) {
			row = stmt.ColumnInt64(0)
			r.Signatures = signaturesIn(stmt.ColumnText(2))
			r.Path, err = s.config.StoreDir.Parse(stmt.ColumnText(1))
			return err
		},
	})
	if err == nil && row == 0 {
		err = unknown
	}
	if err != nil {
		return nil, 0, err
	}
	return r, row, s.readDependencies(conn, r, row)
}

func (s *Store) readDependencies(conn *sqlite.Conn, r *nix.Realisation, row int64) error {
	return sqlitex.Execute(conn, `SELECT drvPath, outputName, path FROM RealisationsRefs
		JOIN Realisations d ON d.id = realisationReference JOIN ValidPaths p ON p.id = outputPath WHERE referrer = ?`, &sqlitex.ExecOptions{
		Args: []any{row},
		ResultFunc: func(stmt *sqlite.Stmt) error {
			id, err := nix.ParseDrvOutput(stmt.ColumnText(0) + "!" + stmt.ColumnText(1))
			if err == nil {
				r.Dependencies[id], err = s.config.StoreDir.Parse(stmt.ColumnText(2))
			}
			return err
		},
	})
}

func hasRealisations(conn *sqlite.Conn) (bool, error) {
	n, err := queryInt(conn, "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN ('Realisations', 'RealisationsRefs')")
	return n == 2, err
}

// AddRealisation registers r by the rules of Nix: its path and its dependencies must be
// here. Of one that is known already it adds the signatures; a known one that leads to
// another path is an error. The error wraps nix.ErrNotValid where the path is not valid.
func (s *Store) AddRealisation(ctx context.Context, r *nix.Realisation) error {
	if err := s.mayWrite(); err != nil {
		return err
	}
	err := s.db.write(ctx, func(conn *sqlite.Conn) error {
		known, err := hasRealisations(conn)
		if err == nil && !known {
			err = executeAll(conn, realisationTables)
		}
		if err != nil {
			return err
		}
		row, err := s.insertRealisation(conn, r)
		if err != nil {
			return err
		}
		return s.insertDependencies(conn, r, row)
	})
	if err != nil {
		return fmt.Errorf("register a realisation of %s: %w", r.ID, err)
	}
	return nil
}

// executeAll runs statements within the transaction of its caller.
func executeAll(conn *sqlite.Conn, script string) error {
	for script = strings.TrimSpace(script); script != ""; script = strings.TrimSpace(script) {
		stmt, trailing, err := conn.PrepareTransient(script)
		if err != nil {
			return err
		}
		_, err = stmt.Step()
		if err = errors.Join(err, stmt.Finalize()); err != nil {
			return err
		}
		script = script[len(script)-trailing:]
	}
	return nil
}

func (s *Store) insertRealisation(conn *sqlite.Conn, r *nix.Realisation) (int64, error) {
	old, row, err := s.realisation(conn, r.ID)
	switch {
	case err == nil && old.Path != r.Path:
		return 0, fmt.Errorf("it leads to %s, but to %s in this store", r.Path, old.Path)
	case err == nil:
		all := nix.MergeSignatures(old.Signatures, r.Signatures)
		return row, sqlitex.Execute(conn, "UPDATE Realisations SET signatures = ? WHERE id = ?",
			&sqlitex.ExecOptions{Args: []any{strings.Join(all, " "), row}})
	case !errors.Is(err, nix.ErrNoRealisation):
		return 0, err
	}
	path, err := pathID(conn, r.Path)
	if err == nil && path == 0 {
		err = fmt.Errorf("%s: %w", r.Path, nix.ErrNotValid)
	}
	if err != nil {
		return 0, err
	}
	// Nix 2.8 crashes where the signatures are null.
	err = sqlitex.Execute(conn, "INSERT INTO Realisations (drvPath, outputName, outputPath, signatures) VALUES (?, ?, ?, ?)",
		&sqlitex.ExecOptions{Args: []any{r.ID.DrvText(), r.ID.Output, path, strings.Join(r.Signatures, " ")}})
	return conn.LastInsertRowID(), err
}

// insertDependencies inserts those that are not known yet.
func (s *Store) insertDependencies(conn *sqlite.Conn, r *nix.Realisation, row int64) error {
	for _, id := range r.SortedDependencies() {
		there, dependency, err := s.realisation(conn, id)
		if err == nil && there.Path != r.Dependencies[id] {
			err = fmt.Errorf("%s leads to %s in this store, expected %s", id, there.Path, r.Dependencies[id])
		}
		if err == nil {
			err = insertRow(conn, `INSERT INTO RealisationsRefs (referrer, realisationReference) SELECT ?1, ?2
				WHERE NOT EXISTS (SELECT 1 FROM RealisationsRefs WHERE referrer = ?1 AND realisationReference = ?2)`, row, dependency)
		}
		if err != nil {
			return fmt.Errorf("dependency: %w", err)
		}
	}
	return nil
}

// deleteRealisationRefs makes way for the deletion of a path's realisations. The tables of
// Nix 2.8 have no trigger that does so.
func deleteRealisationRefs(conn *sqlite.Conn, path int64) error {
	if known, err := hasRealisations(conn); err != nil || !known {
		return err
	}
	return insertRow(conn, `DELETE FROM RealisationsRefs WHERE referrer IN (SELECT id FROM Realisations WHERE outputPath = ?1)
		OR realisationReference IN (SELECT id FROM Realisations WHERE outputPath = ?1)`, path)
}

// RealisationsOf returns those that lead to one of paths, dependencies first.
func (s *Store) RealisationsOf(ctx context.Context, paths []nix.StorePath) (all []*nix.Realisation, err error) {
	wanted := make(map[nix.StorePath]bool, len(paths))
	for _, p := range paths {
		wanted[p] = true
	}
	err = s.db.read(ctx, func(conn *sqlite.Conn) error {
		all = nil
		ids, err := s.realisationIDs(conn, wanted)
		if err != nil {
			return err
		}
		for _, id := range ids {
			r, _, err := s.realisation(conn, id)
			if err != nil {
				return err
			}
			all = append(all, r)
		}
		return nil
	})
	return all, err
}

// realisationIDs returns the outputs whose realisation leads to one of the paths, in the
// order in which they were registered.
func (s *Store) realisationIDs(conn *sqlite.Conn, wanted map[nix.StorePath]bool) (ids []nix.DrvOutput, err error) {
	if known, err := hasRealisations(conn); err != nil || !known {
		return nil, err
	}
	err = sqlitex.Execute(conn, "SELECT drvPath, outputName, path FROM Realisations r JOIN ValidPaths p ON p.id = outputPath ORDER BY r.id", &sqlitex.ExecOptions{
		ResultFunc: func(stmt *sqlite.Stmt) error {
			p, err := s.config.StoreDir.Parse(stmt.ColumnText(2))
			if err != nil || !wanted[p] {
				return err
			}
			id, err := nix.ParseDrvOutput(stmt.ColumnText(0) + "!" + stmt.ColumnText(1))
			ids = append(ids, id)
			return err
		},
	})
	return ids, err
}

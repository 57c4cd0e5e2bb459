package localstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// schema is that of Nix, statement by statement, so that either can go on with
// what the other made.
const schema = `
create table if not exists ValidPaths (
    id               integer primary key autoincrement not null,
    path             text unique not null,
    hash             text not null,
    registrationTime integer not null,
    deriver          text,
    narSize          integer,
    ultimate         integer, -- null implies "false"
    sigs             text, -- space-separated
    ca               text -- if not null, an assertion that the path is content-addressed; see ValidPathInfo
);

create table if not exists Refs (
    referrer  integer not null,
    reference integer not null,
    primary key (referrer, reference),
    foreign key (referrer) references ValidPaths(id) on delete cascade,
    foreign key (reference) references ValidPaths(id) on delete restrict
);

create index if not exists IndexReferrer on Refs(referrer);
create index if not exists IndexReference on Refs(reference);

create trigger if not exists DeleteSelfRefs before delete on ValidPaths
  begin
    delete from Refs where referrer = old.id and reference = old.id;
  end;

create table if not exists DerivationOutputs (
    drv  integer not null,
    id   text not null, -- symbolic output id, usually "out"
    path text not null,
    primary key (drv, id),
    foreign key (drv) references ValidPaths(id) on delete cascade
);

create index if not exists IndexDerivationOutputs on DerivationOutputs(path);
`

// reservedSize is the size of a file that Nix deletes where a full disk would
// keep it from deleting garbage.
const reservedSize = 8 << 20

// OpenOrCreate opens a store and makes it first where there is none. Of several
// processes that do so at once, one makes it and the others wait.
func OpenOrCreate(ctx context.Context, c Config) (*Store, error) {
	s, err := Open(ctx, c)
	if c.ReadOnly || !errors.Is(err, ErrNoStore) {
		return s, err
	}
	if err := c.create(ctx); err != nil {
		return nil, fmt.Errorf("create store %s: %w", c.RealDir, nix.CheckNoSpace(err))
	}
	return Open(ctx, c)
}

func (c Config) create(ctx context.Context) error {
	for _, dir := range []string{
		c.RealDir,
		filepath.Join(c.RealDir, ".links"),
		c.state("db"),
		c.state("temproots"),
		c.state("gcroots/auto"),
		c.state("profiles"),
	} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	lock, err := c.openBigLock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := flock(ctx, lock, unix.LOCK_EX); err != nil {
		return err
	}
	// While we waited, another process may have made it.
	if err := c.checkSchema(); !errors.Is(err, ErrNoStore) {
		return err
	}
	if err := os.Symlink(c.state("profiles"), c.state("gcroots/profiles")); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := c.reserve(); err != nil {
		return err
	}
	if err := c.createDatabase(); err != nil {
		return err
	}
	return writeFile(c.state("db/schema"), schemaVersion)
}

// reserve makes the file of reservedSize. Where the file system cannot allocate
// room, it takes none, which does no harm.
func (c Config) reserve() error {
	f, err := os.OpenFile(c.state("db/reserved"), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := allocate(f, reservedSize); err != nil {
		return fmt.Errorf("allocate %s: %w", f.Name(), err)
	}
	return nil
}

func (c Config) createDatabase() error {
	path := c.state("db/db.sqlite")
	conn, err := sqlite.OpenConn(path, sqlite.OpenReadWrite|sqlite.OpenCreate)
	if err == nil {
		err = errors.Join(sqlitex.ExecuteTransient(conn, "PRAGMA journal_mode = wal", nil),
			sqlitex.ExecuteScript(conn, schema, nil), conn.Close())
	}
	if err != nil {
		return fmt.Errorf("database %s: %w", path, err)
	}
	return nil
}

// writeFile makes a file that is either there as a whole or not at all. The caller has
// a lock: a draft that a killed process has left is written anew.
func writeFile(path, text string) error {
	draft := path + ".tmp"
	f, err := os.OpenFile(draft, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(draft, path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(draft))
	}
	return err
}

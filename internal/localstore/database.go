package localstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"time"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/copy-closure/copy-closure/internal/nix"
)

const (
	maxConns     = 4  // to the database at once
	maxRereads   = 20 // of a database that changes while it is read
	rereadsDelay = 50 * time.Millisecond
)

// A database is the store's table of valid paths. Connections are opened as they
// are needed and kept.
//
// Nothing else in this process may open and close the database file: that would
// drop the locks that SQLite holds.
type database struct {
	path     string
	readOnly bool
	slots    chan struct{} // one for each connection in use
	idle     chan *connection
	writing  chan struct{} // the right to write, which SQLite would give less fairly
}

// A connection is used by one goroutine at a time.
type connection struct {
	*sqlite.Conn
	frozen bool      // it takes the file as it was for unchanging
	was    fileState // of the file that a frozen connection reads
}

func newDatabase(c Config) *database {
	return &database{
		path:     c.state("db/db.sqlite"),
		readOnly: c.ReadOnly,
		slots:    make(chan struct{}, maxConns),
		idle:     make(chan *connection, maxConns),
		writing:  make(chan struct{}, 1),
	}
}

// check opens a first connection. A database that is not in WAL mode belongs to a
// Nix with use-sqlite-wal = false, which locks it in another way.
func (d *database) check(ctx context.Context) error {
	return d.read(ctx, func(conn *sqlite.Conn) error {
		mode, err := queryText(conn, "PRAGMA journal_mode")
		if err == nil && !d.readOnly && mode != "wal" {
			err = fmt.Errorf("%w: database %s has journal mode %q, and only wal can be shared with Nix", ErrReadOnly, d.path, mode)
		}
		return err
	})
}

func queryText(conn *sqlite.Conn, query string) (text string, err error) {
	err = sqlitex.ExecuteTransient(conn, query, &sqlitex.ExecOptions{ResultFunc: func(stmt *sqlite.Stmt) error {
		text = stmt.ColumnText(0)
		return nil
	}})
	return text, err
}

func queryInt(conn *sqlite.Conn, query string) (n int64, err error) {
	stmt, err := conn.Prepare(query)
	if err != nil {
		return 0, err
	}
	return sqlitex.ResultInt64(stmt)
}

// close closes all connections, none of which may be in use.
func (d *database) close() error {
	var errs []error
	for {
		select {
		case conn := <-d.idle:
			errs = append(errs, conn.Close())
		default:
			return errors.Join(errs...)
		}
	}
}

// read calls fn with a connection on which all queries see the same state. It may
// call fn again, which must then forget what it read before.
func (d *database) read(ctx context.Context, fn func(*sqlite.Conn) error) error {
	for try := 0; ; try++ {
		again, err := d.readOnce(ctx, fn)
		if !again {
			return err
		}
		if try == maxRereads {
			return fmt.Errorf("read %s: it changes all the time, and this user cannot lock it", d.path)
		}
		select {
		case <-time.After(rereadsDelay):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (d *database) readOnce(ctx context.Context, fn func(*sqlite.Conn) error) (again bool, err error) {
	conn, err := d.take(ctx)
	if err != nil {
		return false, err
	}
	defer func() { d.put(conn, again) }()
	err = inTransaction(conn.Conn, "BEGIN", fn)
	if conn.frozen {
		now, statErr := d.state()
		if statErr != nil {
			return false, statErr
		}
		if now != conn.was {
			return true, nil
		}
	}
	return false, d.wrap(ctx, err)
}

// write calls fn within a transaction that is committed if fn returns nil. A power
// failure can undo the latest transactions.
func (d *database) write(ctx context.Context, fn func(*sqlite.Conn) error) error {
	return d.withWriter(ctx, func(conn *sqlite.Conn) error {
		return inTransaction(conn, "BEGIN IMMEDIATE", fn)
	})
}

// writeDurably does what write does, and the changes are on the disk when it returns.
func (d *database) writeDurably(ctx context.Context, fn func(*sqlite.Conn) error) error {
	return d.withWriter(ctx, func(conn *sqlite.Conn) error {
		if err := sqlitex.ExecuteTransient(conn, "PRAGMA synchronous = full", nil); err != nil {
			return err
		}
		err := inTransaction(conn, "BEGIN IMMEDIATE", fn)
		return errors.Join(err, sqlitex.ExecuteTransient(conn, "PRAGMA synchronous = normal", nil))
	})
}

// withWriter calls fn with a connection that no other goroutine writes beside.
func (d *database) withWriter(ctx context.Context, fn func(*sqlite.Conn) error) error {
	select {
	case d.writing <- struct{}{}:
		defer func() { <-d.writing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	conn, err := d.take(ctx)
	if err != nil {
		return err
	}
	defer d.put(conn, false)
	return d.wrap(ctx, fn(conn.Conn))
}

func inTransaction(conn *sqlite.Conn, begin string, fn func(*sqlite.Conn) error) error {
	if err := execute(conn, begin); err != nil {
		return err
	}
	err := fn(conn)
	if err == nil {
		err = execute(conn, "COMMIT")
	}
	if err != nil && !conn.AutocommitEnabled() {
		// An interrupt would stop the rollback, too.
		conn.SetInterrupt(nil)
		err = errors.Join(err, execute(conn, "ROLLBACK"))
	}
	return err
}

func execute(conn *sqlite.Conn, query string) error {
	return sqlitex.Execute(conn, query, nil)
}

// wrap says that an error came from the database, or why the context ended.
func (d *database) wrap(ctx context.Context, err error) error {
	code := sqlite.ErrCode(err).ToPrimary()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil && code == sqlite.ResultInterrupt:
		return context.Cause(ctx)
	case code == sqlite.ResultFull:
		return fmt.Errorf("database %s: %w: %w", d.path, nix.ErrNoSpace, err)
	case code != sqlite.ResultError: // which stands for errors of others
		return fmt.Errorf("database %s: %w", d.path, err)
	}
	return err
}

// take returns a connection whose queries end with ctx.
func (d *database) take(ctx context.Context) (*connection, error) {
	select {
	case d.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	conn, err := d.connection()
	if err != nil {
		<-d.slots
		return nil, d.wrap(ctx, err)
	}
	conn.SetInterrupt(ctx.Done())
	return conn, nil
}

func (d *database) put(conn *connection, discard bool) {
	conn.SetInterrupt(nil)
	if discard {
		conn.Close()
	} else {
		d.idle <- conn
	}
	<-d.slots
}

// connection returns one that is idle and still good, or a new one.
func (d *database) connection() (*connection, error) {
	for {
		select {
		case conn := <-d.idle:
			if !conn.frozen {
				return conn, nil
			}
			if now, err := d.state(); err == nil && now == conn.was {
				return conn, nil
			}
			conn.Close()
		default:
			if d.readOnly {
				return d.connectForReading()
			}
			return d.connect()
		}
	}
}

func (d *database) connect() (*connection, error) {
	conn, err := sqlite.OpenConn(d.path, sqlite.OpenReadWrite)
	if err != nil {
		return nil, err
	}
	for _, pragma := range []string{
		"PRAGMA foreign_keys = 1",
		"PRAGMA synchronous = normal",
		"PRAGMA wal_autocheckpoint = 40000", // Nix's
	} {
		if err := sqlitex.ExecuteTransient(conn, pragma, nil); err != nil {
			conn.Close()
			return nil, err
		}
	}
	return &connection{Conn: conn}, nil
}

// connectForReading opens the database so that nothing is written, not even the
// files that SQLite shares between processes. While a process that may write
// them has the database open they exist, and reading is as safe as ever. Without
// them there is no writer now, and all that can be done is to look afterwards
// whether one has come.
func (d *database) connectForReading() (*connection, error) {
	was, err := d.state()
	if err != nil {
		return nil, err
	}
	if was.shared {
		conn, err := sqlite.OpenConn(d.path, sqlite.OpenReadOnly)
		if err == nil {
			if _, err = queryInt(conn, "SELECT count(*) FROM sqlite_master"); err == nil {
				return &connection{Conn: conn}, nil
			}
			conn.Close()
		}
	}
	uri := url.URL{Scheme: "file", Path: d.path, RawQuery: "mode=ro&immutable=1"}
	conn, err := sqlite.OpenConn(uri.String(), sqlite.OpenReadOnly|sqlite.OpenURI)
	if err != nil {
		return nil, err
	}
	return &connection{Conn: conn, frozen: true, was: was}, nil
}

// settled is for how long the files of a database must have been left alone until
// their times tell a later change from the last: longer than any clock's tick.
const settled = 100 * time.Millisecond

// Version returns a value that differs from an earlier one if anything was committed
// in between, without asking the database. ok is false where it cannot tell, as right
// after a change.
func (s *Store) Version() (version any, ok bool) {
	var files [2]fileStamp
	limit := time.Now().Add(-settled)
	for i, path := range []string{s.db.path, s.db.path + "-wal"} {
		var err error
		if files[i], _, err = stamp(path); err != nil || !files[i].changed.Before(limit) {
			return nil, false
		}
	}
	return files, true
}

// A fileState tells whether a database may have changed.
type fileState struct {
	database, log fileStamp
	shared        bool // the files exist that its users share
}

type fileStamp struct {
	size    int64
	changed time.Time
}

func (d *database) state() (st fileState, err error) {
	if st.database, _, err = stamp(d.path); err != nil {
		return st, err
	}
	var log, shm bool
	if st.log, log, err = stamp(d.path + "-wal"); err != nil {
		return st, err
	}
	_, shm, err = stamp(d.path + "-shm")
	st.shared = log && shm
	return st, err
}

func stamp(path string) (fileStamp, bool, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fileStamp{}, false, nil
	}
	if err != nil {
		return fileStamp{}, false, err
	}
	return fileStamp{st.Size(), st.ModTime()}, true, nil
}

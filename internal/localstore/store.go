// Package localstore reads and writes a store on this machine: the directory of
// contents, the database of what is valid, and the roots that keep paths from
// garbage collection, all as Nix has them. A store may be shared with Nix at any
// time; STORE.md beside this file lists the rules that make it safe.
package localstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/copy-closure/copy-closure/internal/nix"
)

var (
	// ErrNoStore says that there is no store where one was looked for.
	ErrNoStore = errors.New("there is no store")

	// ErrReadOnly says that a store may be read and not written.
	ErrReadOnly = errors.New("the store is not writable")
)

// schemaVersion is the one version of the database that this package knows. Nix
// has not changed it since 2.0.
const schemaVersion = "10"

// A SchemaError says that a store's database has a version other than 10.
type SchemaError struct {
	Path    string // of the file that says so
	Version string
}

func (e *SchemaError) Error() string {
	return fmt.Sprintf("%s: database schema %q is not %s, the only one known here", e.Path, e.Version, schemaVersion)
}

// A Config says where a store is.
type Config struct {
	StoreDir nix.StoreDir // as it stands in store paths
	RealDir  string       // where the contents are
	StateDir string       // database, roots, profiles
	LogDir   string       // build logs; nothing here writes any

	// ReadOnly opens the store without changing anything in it. Hold still
	// takes temporary roots where the state directory permits.
	ReadOnly bool
	// NoSymlinks refuses a store whose directory of contents, or one above it, is a
	// symbolic link, as Nix does.
	NoSymlinks bool
	// NoSync registers paths whose files may not have reached the disk. A power
	// failure can then leave valid paths with empty files, as in Nix.
	NoSync bool
	Logger *slog.Logger // nil discards
}

// Under returns the store that lies under root, with the logical directory
// /nix/store as in Nix. An empty root is the machine's.
func Under(root string) Config {
	return Config{
		StoreDir: nix.DefaultStoreDir,
		RealDir:  filepath.Join("/", root, "nix/store"),
		StateDir: filepath.Join("/", root, "nix/var/nix"),
		LogDir:   filepath.Join("/", root, "nix/var/log/nix"),
	}
}

func (c Config) check() error {
	if err := c.StoreDir.Check(); err != nil {
		return err
	}
	for _, dir := range []string{c.RealDir, c.StateDir} {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("directory %q of the store is not absolute", dir)
		}
	}
	return nil
}

func (c Config) state(elem ...string) string {
	return filepath.Join(append([]string{c.StateDir}, elem...)...)
}

// A Store is an open store. Its methods may be called concurrently.
type Store struct {
	config  Config
	log     *slog.Logger
	db      *database
	dir     *os.File // the directory of contents
	bigLock *os.File // locked while the store is open; nil where we may not
	temp    tempRoots

	announced atomic.Int64 // bytes of large NARs that are being read and have not come yet
	drvs      drvHashes

	syncContents func() error // writes the file system of the contents to the disk
	leftovers    atomic.Bool  // contents that are not valid and have no lock stay behind

	tempFiles sync.Mutex // files of temporary roots come and go one at a time
}

// Open opens an existing store. The error wraps ErrNoStore if there is none,
// ErrReadOnly if it may not be written and c.ReadOnly is not set, or is a
// *SchemaError.
func Open(ctx context.Context, c Config) (*Store, error) {
	s, err := open(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", c.RealDir, err)
	}
	return s, nil
}

func open(ctx context.Context, c Config) (_ *Store, err error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{config: c, log: c.Logger}
	s.syncContents = func() error { return syncFileSystem(s.dir) }
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if err := c.checkSymlinks(); err != nil {
		return nil, err
	}
	if err := c.checkSchema(); err != nil {
		return nil, err
	}
	if !c.ReadOnly {
		if err := c.checkWritable(); err != nil {
			return nil, err
		}
	}
	if s.dir, err = os.Open(c.RealDir); err != nil {
		return nil, noStore(err)
	}
	if s.bigLock, err = c.openBigLock(); err != nil {
		return nil, err
	}
	if s.bigLock != nil {
		// Held exclusively only while a database is made or changes its schema.
		if err := flock(ctx, s.bigLock, unix.LOCK_SH); err != nil {
			return nil, err
		}
		if err := c.checkSchema(); err != nil {
			return nil, err
		}
	}
	s.db = newDatabase(c)
	return s, s.db.check(ctx)
}

// checkSymlinks is for NoSymlinks. What is not there is no link.
func (c Config) checkSymlinks() error {
	if !c.NoSymlinks {
		return nil
	}
	for dir := filepath.Clean(c.RealDir); dir != "/"; dir = filepath.Dir(dir) {
		if st, err := os.Lstat(dir); err == nil && st.Mode()&fs.ModeSymlink != 0 {
			return fmt.Errorf("%s is a symbolic link, which neither the store nor a directory above it may be; NIX_IGNORE_SYMLINK_STORE=1 allows it", dir)
		}
	}
	return nil
}

// checkSchema reads the file that says which version the database has.
func (c Config) checkSchema() error {
	path := c.state("db/schema")
	text, err := os.ReadFile(path)
	if err != nil {
		return noStore(err)
	}
	if version := strings.TrimSpace(string(text)); version != schemaVersion {
		return &SchemaError{Path: path, Version: version}
	}
	return nil
}

func noStore(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("%w: %w", ErrNoStore, err)
	}
	return err
}

func (c Config) checkWritable() error {
	for _, path := range []string{c.RealDir, c.state("db"), c.state("db/db.sqlite")} {
		if err := unix.Access(path, unix.W_OK); err != nil {
			return fmt.Errorf("%w: %w", ErrReadOnly, &fs.PathError{Op: "write", Path: path, Err: err})
		}
	}
	return nil
}

// openBigLock returns nil where a reader has no right to the lock: such a reader
// relies on the schema never changing, as it has not for many years.
func (c Config) openBigLock() (*os.File, error) {
	path := c.state("db/big-lock")
	if c.ReadOnly {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return f, err
	}
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
}

// Close releases the store's locks and its temporary roots. It must not be called
// while another method runs.
func (s *Store) Close() error {
	var errs []error
	if s.db != nil {
		errs = append(errs, s.db.close())
	}
	if s.leftovers.Load() {
		errs = append(errs, s.temp.abandon())
	} else {
		errs = append(errs, s.temp.close())
	}
	for _, f := range []*os.File{s.dir, s.bigLock} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close store %s: %w", s.config.RealDir, err)
	}
	return nil
}

// StoreDir returns the logical store directory.
func (s *Store) StoreDir() nix.StoreDir { return s.config.StoreDir }

// RealPath returns where p's contents lie, whether p is valid or not.
func (s *Store) RealPath(p nix.StorePath) string {
	return filepath.Join(s.config.RealDir, p.Base())
}

// FreeSpace returns the room on the file system of the contents, for users
// other than root: bytes, and files that can still be made. Where the file system
// does not count files, inodes is 0.
func (s *Store) FreeSpace() (bytes, inodes uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(s.dir.Fd()), &st); err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: s.config.RealDir, Err: err}
	}
	return st.Bavail * uint64(st.Bsize), uint64(st.Ffree), nil
}

// SharesSpace reports whether the file system of the contents is known to compress or
// to share blocks, so that its free space says little of what fits.
func (s *Store) SharesSpace() bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(s.dir.Fd()), &st) == nil && sharesSpace(&st)
}

// checkDir refuses a path of another store directory.
func (s *Store) checkDir(p nix.StorePath) error {
	if p.IsZero() || p.Dir() != s.config.StoreDir {
		return fmt.Errorf("%q is not in the store %s", p, s.config.StoreDir)
	}
	return nil
}

// mayWrite returns an error if the store was opened for reading.
func (s *Store) mayWrite() error {
	if s.config.ReadOnly {
		return fmt.Errorf("store %s: %w: it was opened for reading only", s.config.RealDir, ErrReadOnly)
	}
	return nil
}

package localstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// tempRoots are the paths that a store keeps from garbage collection while it is
// open. They stand in a file that a collector reads; the lock on it says that we
// are alive.
type tempRoots struct {
	mu   sync.Mutex
	file *os.File // nil before the first
	kept string   // second name of the file, see keepTempRoots; "" if it has none
	held map[nix.StorePath]struct{}
	size int // bytes in the file
	most int // bytes that may be in it; 0: maxTempRoots
}

// LimitTempRoots bounds the file of temporary roots to so many bytes. Hold fails when it
// would grow beyond.
func (s *Store) LimitTempRoots(bytes int) {
	s.temp.mu.Lock()
	defer s.temp.mu.Unlock()
	s.temp.most = bytes
}

// Hold keeps paths, valid or not, from garbage collection until the store is
// closed. While a collection is under way it has been told of them when Hold
// returns, or has deleted them: so ask only then which of them are valid. The
// error wraps ErrReadOnly where this user cannot take roots.
func (s *Store) Hold(ctx context.Context, paths []nix.StorePath) error {
	s.temp.mu.Lock()
	defer s.temp.mu.Unlock()
	var fresh []nix.StorePath
	for _, p := range paths {
		if err := s.checkDir(p); err != nil {
			return err
		}
		if _, ok := s.temp.held[p]; !ok {
			fresh = append(fresh, p)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	if err := s.hold(ctx, &s.temp, fresh); err != nil {
		return err
	}
	if s.temp.held == nil {
		s.temp.held = make(map[nix.StorePath]struct{}, len(fresh))
	}
	for _, p := range fresh {
		s.temp.held[p] = struct{}{}
	}
	return nil
}

// HoldUntil keeps p as Hold does, but only until release is called.
func (s *Store) HoldUntil(ctx context.Context, p nix.StorePath) (release func() error, err error) {
	if err := s.checkDir(p); err != nil {
		return nil, err
	}
	roots := new(tempRoots)
	release = func() error {
		s.tempFiles.Lock()
		defer s.tempFiles.Unlock()
		return roots.close()
	}
	if err := s.hold(ctx, roots, []nix.StorePath{p}); err != nil {
		return nil, errors.Join(err, release())
	}
	return release, nil
}

// hold adds paths to roots.
func (s *Store) hold(ctx context.Context, roots *tempRoots, paths []nix.StorePath) error {
	err := roots.checkSize(paths)
	if err == nil {
		err = s.addTempRoots(ctx, roots, paths)
	}
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		err = fmt.Errorf("%w: %w", ErrReadOnly, err)
	}
	if err != nil {
		return fmt.Errorf("hold %d paths: %w", len(paths), err)
	}
	return nil
}

func (s *Store) addTempRoots(ctx context.Context, roots *tempRoots, paths []nix.StorePath) error {
	if roots.file == nil {
		var err error
		if roots.file, err = s.createTempRoots(); err != nil {
			return err
		}
	}
	gcLock, err := os.OpenFile(s.config.state("gc.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer gcLock.Close()
	err = poll(ctx, func() (bool, error) {
		if ok, err := tryFlock(gcLock, unix.LOCK_SH); ok || err != nil {
			return ok, err
		}
		return s.tellCollector(ctx, paths)
	})
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, p := range paths {
		text.WriteString(p.String())
		text.WriteByte(0)
	}
	_, err = roots.file.WriteString(text.String())
	roots.size += text.Len()
	return err
}

// checkSize refuses paths for which the file has no room.
func (t *tempRoots) checkSize(paths []nix.StorePath) error {
	most := maxTempRoots
	if t.most > 0 {
		most = t.most
	}
	size := t.size
	for _, p := range paths {
		size += len(p.String()) + 1
	}
	if size > most {
		return fmt.Errorf("a process may have temporary roots of %d MiB, and these would take %d MiB", most>>20, size>>20)
	}
	return nil
}

// outlastCollector waits for a garbage collection that is under way. One that has
// looked for roots before a new one was made must have seen our temporary roots.
func (s *Store) outlastCollector(ctx context.Context) error {
	gcLock, err := os.OpenFile(s.config.state("gc.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer gcLock.Close()
	return flock(ctx, gcLock, unix.LOCK_SH)
}

// createTempRoots makes and locks the file of our roots. Its name must begin with
// our number; that alone is taken if another store of this process has it, or a
// process in another container.
func (s *Store) createTempRoots() (*os.File, error) {
	s.tempFiles.Lock()
	defer s.tempFiles.Unlock()
	dir := s.config.state("temproots")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s/%d", dir, os.Getpid())
	for n := 0; ; {
		path := name
		if n > 0 {
			path = fmt.Sprintf("%s-%d", name, n)
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		locked, err := tryFlock(f, unix.LOCK_EX)
		if err != nil {
			f.Close()
			return nil, err
		}
		if !locked {
			f.Close()
			n++
			continue
		}
		stale, err := isStale(f)
		if err == nil && !stale {
			return f, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
		n++ // deleted just now, or of a dead process: the next import reads it
	}
}

// keepTempRoots gives the file of our temporary roots a second name. If we are killed,
// the next import finds by it what we have left: any collector deletes the first name
// when it finds that we are dead.
func (s *Store) keepTempRoots() error {
	s.temp.mu.Lock()
	defer s.temp.mu.Unlock()
	if s.temp.file == nil || s.temp.kept != "" {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(s.temp.file.Fd()), &st); err != nil {
		return err
	}
	if err := os.MkdirAll(s.importsDir(), 0o700); err != nil {
		return err
	}
	// No other file has the number of an inode that a name here keeps.
	kept := filepath.Join(s.importsDir(), fmt.Sprintf("%s-%d", filepath.Base(s.temp.file.Name()), st.Ino))
	if err := os.Link(s.temp.file.Name(), kept); err != nil {
		return err
	}
	s.temp.kept = kept
	return nil
}

// importsDir is where the second names are.
func (s *Store) importsDir() string { return s.config.state("copy-closure/imports") }

// close deletes the roots.
func (t *tempRoots) close() error {
	if t.file == nil {
		return nil
	}
	var err error
	if t.kept != "" {
		err = os.Remove(t.kept)
	}
	lock := fileLock{t.file}
	t.file, t.kept = nil, ""
	return errors.Join(err, lock.release())
}

// abandon leaves the roots as those of a dead process, for the next import to look for
// leftovers.
func (t *tempRoots) abandon() error {
	if t.file == nil {
		return nil
	}
	return t.file.Close()
}

// collectorWindow is how many paths a collector is told before its answers are
// awaited: it answers each with a byte, and must never wait for us to read them.
const collectorWindow = 64

// tellCollector gives paths to the garbage collection that is under way. It returns
// false if that has ended, has not quite begun, or has no room in its queue: the
// caller asks again later.
func (s *Store) tellCollector(ctx context.Context, paths []nix.StorePath) (bool, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", s.config.state("gc-socket/socket"))
	if errors.Is(err, unix.EAGAIN) {
		return false, nil // its queue is full; a connect that blocks, as Nix's does, would wait
	}
	if err != nil {
		return false, unlessGone(err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	answers := bufio.NewReader(conn)
	for window := range slices.Chunk(paths, collectorWindow) {
		if err := tellWindow(conn, answers, window); err != nil {
			if ctx.Err() != nil {
				return false, context.Cause(ctx)
			}
			return false, unlessGone(err)
		}
	}
	return true, nil
}

func tellWindow(conn net.Conn, answers *bufio.Reader, paths []nix.StorePath) error {
	var text strings.Builder
	for _, p := range paths {
		text.WriteString(p.String())
		text.WriteByte('\n')
	}
	if _, err := conn.Write([]byte(text.String())); err != nil {
		return err
	}
	for range paths {
		answer, err := answers.ReadByte()
		if err != nil {
			return unix.EPIPE // it has hung up: it is over
		}
		if answer != '1' {
			return fmt.Errorf("garbage collector answered %q", answer)
		}
	}
	return nil
}

// unlessGone drops the errors that mean that there is no collector (any more).
func unlessGone(err error) error {
	for _, gone := range []error{unix.ECONNREFUSED, unix.ENOENT, unix.EPIPE, unix.ECONNRESET} {
		if errors.Is(err, gone) {
			return nil
		}
	}
	return err
}

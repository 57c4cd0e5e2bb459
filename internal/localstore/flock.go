package localstore

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Waiting for a lock is asking again and again: a system call that waits would
// not end with its context.
const (
	firstLockDelay = time.Millisecond
	lastLockDelay  = 50 * time.Millisecond
)

// tryFlock reports whether it got the lock: unix.LOCK_SH or unix.LOCK_EX.
func tryFlock(f *os.File, how int) (bool, error) {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EWOULDBLOCK):
			return false, nil
		case !errors.Is(err, unix.EINTR):
			return false, &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
	}
}

// flock waits for the lock.
func flock(ctx context.Context, f *os.File, how int) error {
	return poll(ctx, func() (bool, error) { return tryFlock(f, how) })
}

// poll calls try until it reports success or an error.
func poll(ctx context.Context, try func() (bool, error)) error {
	delay := firstLockDelay
	for {
		ok, err := try()
		if ok || err != nil {
			return err
		}
		select {
		case <-time.After(delay):
			delay = min(2*delay, lastLockDelay)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// A fileLock is an exclusive lock by means of a file that exists only while
// somebody holds or wants the lock.
type fileLock struct{ file *os.File }

// tryFileLock returns nil if somebody else holds the lock.
func tryFileLock(path string) (*fileLock, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		ok, err := tryFlock(f, unix.LOCK_EX)
		if err != nil || !ok {
			f.Close()
			return nil, err
		}
		stale, err := isStale(f)
		if err != nil {
			f.Close()
			return nil, err
		}
		if !stale {
			return &fileLock{f}, nil
		}
		f.Close()
	}
}

// isStale reports whether whoever held the lock before deleted the file, so that
// others by now lock another one of its name. As in Nix, a byte in it says so.
func isStale(f *os.File) (bool, error) {
	st, err := f.Stat()
	if err != nil {
		return false, err
	}
	return st.Size() > 0, nil
}

// waitFileLock waits for the lock.
func waitFileLock(ctx context.Context, path string) (lock *fileLock, err error) {
	err = poll(ctx, func() (bool, error) {
		lock, err = tryFileLock(path)
		return lock != nil, err
	})
	return lock, err
}

// release deletes the file and gives the lock up.
func (l *fileLock) release() error {
	err := os.Remove(l.file.Name())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	_, writeErr := l.file.Write([]byte("d"))
	return errors.Join(err, writeErr, l.file.Close())
}

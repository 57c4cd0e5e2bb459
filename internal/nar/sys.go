package nar

import (
	"io"

	"golang.org/x/sys/unix"
)

// Files are opened by names of one component, relative to a directory that is
// open, and never through a symbolic link. O_NONBLOCK matters for what is no
// regular file after all: opening a named pipe would wait.
const (
	readFlags   = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	dirFlags    = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_DIRECTORY | unix.O_CLOEXEC
	createFlags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
)

// A dirent is a name in a directory with the file's type in the form of
// unix.S_IFMT, zero where the file system does not tell.
type dirent struct {
	name string
	kind uint32
}

// uninterrupted repeats a system call that a signal has interrupted.
func uninterrupted[T any](call func() (T, error)) (T, error) {
	for {
		v, err := call()
		if err != unix.EINTR {
			return v, err
		}
	}
}

func openat(dir int, name string, flags int, mode uint32) (int, error) {
	return uninterrupted(func() (int, error) { return unix.Openat(dir, name, flags, mode) })
}

func fstatat(dir int, name string) (st unix.Stat_t, err error) {
	_, err = uninterrupted(func() (struct{}, error) {
		return struct{}{}, unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	return st, err
}

func read(fd int, p []byte) (int, error) {
	return uninterrupted(func() (int, error) { return unix.Read(fd, p) })
}

// writeAll writes all of p.
func writeAll(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := uninterrupted(func() (int, error) { return unix.Write(fd, p) })
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrShortWrite
		}
		p = p[n:]
	}
	return nil
}

// readlinkat returns the target of a symbolic link, using buf, which is longer
// than any.
func readlinkat(dir int, name string, buf *[MaxTarget + 1]byte) ([]byte, error) {
	n, err := uninterrupted(func() (int, error) { return unix.Readlinkat(dir, name, buf[:]) })
	if err != nil {
		return nil, err
	}
	if n > MaxTarget {
		return nil, unix.ENAMETOOLONG
	}
	return buf[:n], nil
}

package nar

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// RemoveAll deletes the file or tree at path, or nothing if there is none. It
// follows no link and deletes from read-only directories as well, by making them
// writable first.
func RemoveAll(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return pathError("remove", path, err)
	}
	defer dir.Close()
	return RemoveAllAt(dir, filepath.Base(path))
}

// RemoveAllAt does the same for a name in an open directory.
func RemoveAllAt(dir *os.File, name string) error {
	path := filepath.Join(dir.Name(), name)
	if err := checkName(name); err != nil {
		return pathError("remove", path, err)
	}
	defer runtime.KeepAlive(dir)
	return removeAll(int(dir.Fd()), name, path)
}

func removeAll(dir int, name, path string) error {
	// Linux answers EISDIR for a directory, others EPERM.
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	fd, openErr := openat(dir, name, dirFlags, 0)
	if openErr == unix.ENOTDIR || openErr == unix.ELOOP {
		return pathError("remove", path, err)
	}
	if openErr != nil {
		return pathError("remove", path, openErr)
	}
	err = removeEntries(fd, path)
	unix.Close(fd)
	if err != nil {
		return err
	}
	err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	if err != nil && err != unix.ENOENT {
		return pathError("remove", path, err)
	}
	return nil
}

// removeEntries empties an open directory.
func removeEntries(fd int, path string) error {
	list, err := readDir(fd, nil, make([]byte, 32<<10))
	if err != nil {
		return pathError("remove", path, err)
	}
	if len(list) == 0 {
		return nil
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && st.Mode&0o300 != 0o300 {
		err = unix.Fchmod(fd, 0o700)
	}
	if err != nil {
		return pathError("remove", path, err)
	}
	for _, entry := range list {
		if err := removeAll(fd, entry.name, filepath.Join(path, entry.name)); err != nil {
			return err
		}
	}
	return nil
}

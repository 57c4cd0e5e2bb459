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
	var r remover
	defer r.open.close()
	return r.remove(int(dir.Fd()), name, path)
}

// A remover deletes a tree.
type remover struct {
	dirents []byte
	open    levels
}

func (r *remover) remove(dir int, name, path string) error {
	// Linux answers EISDIR for a directory, others EPERM.
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if r.dirents == nil {
		r.dirents = make([]byte, 32<<10)
	}
	list, openErr := r.open.list(dir, name, r.dirents)
	if openErr == unix.ENOTDIR || openErr == unix.ELOOP {
		return pathError("remove", path, err)
	}
	if openErr != nil {
		return pathError("remove", path, openErr)
	}
	if err := r.entries(list, path); err != nil {
		return err
	}
	if err := r.open.leave(); err != nil {
		return pathError("remove", path, err)
	}
	if len(r.open) > 0 {
		dir = r.open.fd()
	}
	err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	if err != nil && err != unix.ENOENT {
		return pathError("remove", path, err)
	}
	return nil
}

// entries empties the innermost directory.
func (r *remover) entries(list []dirent, path string) error {
	if len(list) == 0 {
		return nil
	}
	fd := r.open.fd()
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err == nil && st.Mode&0o300 != 0o300 {
		err = unix.Fchmod(fd, 0o700)
	}
	if err != nil {
		return pathError("remove", path, err)
	}
	for _, entry := range list {
		if err := r.remove(r.open.fd(), entry.name, filepath.Join(path, entry.name)); err != nil {
			return err
		}
	}
	return nil
}

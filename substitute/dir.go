package substitute

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// Dir is a cache in a directory of this machine, file://. The directory is made by
// the first Put.
type Dir string

// String implements Files.
func (d Dir) String() string { return "file://" + string(d) }

// path is where the file with that name lies; the name may not lead elsewhere.
func (d Dir) path(name string) (string, error) {
	if !filepath.IsLocal(name) {
		return "", fmt.Errorf("%s: %.200q is not the name of a file in a cache", d, name)
	}
	return filepath.Join(string(d), name), nil
}

// Open implements Files.
func (d Dir) Open(_ context.Context, name string, offset int64) (io.ReadCloser, error) {
	path, err := d.path(name)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, openFlags, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s/%s is not a file", d, name)
	}
	if err == nil {
		_, err = f.Seek(offset, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// openFlags are for files of a cache, which a FIFO may pretend to be.
const openFlags = os.O_RDONLY | syscall.O_NONBLOCK | syscall.O_NOCTTY

// Put implements WritableFiles: the contents are written beside their place, brought
// to the disk, and renamed.
func (d Dir) Put(ctx context.Context, name string, contents io.ReadSeeker, size int64) error {
	if _, err := d.path(name); err != nil {
		return err
	}
	f, err := d.Create(filepath.Dir(name))
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	n, err := io.Copy(f, contents)
	stop()
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes were written, expected %d", n, size)
	}
	if err != nil {
		err = fmt.Errorf("%s/%s: %w", d, name, nix.CheckNoSpace(err))
		return errors.Join(cmp.Or(context.Cause(ctx), err), discard(f))
	}
	return d.Place(ctx, f, name)
}

// Create implements spoolHome.
func (d Dir) Create(dir string) (*os.File, error) {
	path, err := d.path(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, nix.CheckNoSpace(err)
	}
	f, err := os.CreateTemp(path, temporaryPrefix+"*")
	return f, nix.CheckNoSpace(err)
}

// Place implements spoolHome.
func (d Dir) Place(ctx context.Context, f *os.File, name string) error {
	path, err := d.path(name)
	if err == nil {
		err = cmp.Or(context.Cause(ctx), f.Chmod(0o644), f.Sync(), f.Close())
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("%s/%s: %w", d, name, nix.CheckNoSpace(err)), discard(f))
	}
	return err
}

// discard closes and deletes a file that is not needed.
func discard(f *os.File) error {
	f.Close() // it may be closed
	return os.Remove(f.Name())
}

// temporaryPrefix marks files that are being written, and those that a killed process
// has left. No name in a cache begins with it.
const temporaryPrefix = ".copy-closure-"

// Size implements WritableFiles.
func (d Dir) Size(_ context.Context, name string) (int64, error) {
	path, err := d.path(name)
	if err != nil {
		return 0, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// List implements ListableFiles.
func (d Dir) List(_ context.Context, prefix string) (map[string]File, error) {
	entries, err := os.ReadDir(filepath.Join(string(d), prefix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	files := make(map[string]File)
	for _, entry := range entries {
		if entry.IsDir() || strings.HasPrefix(entry.Name(), temporaryPrefix) {
			continue
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // somebody else's temporary file, or deleted just now
		}
		if err != nil {
			return nil, err
		}
		files[prefix+entry.Name()] = File{info.Size(), info.ModTime()}
	}
	return files, nil
}

// Remove implements WritableFiles.
func (d Dir) Remove(_ context.Context, name string) error {
	path, err := d.path(name)
	if err != nil {
		return err
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Sweep implements SweptFiles.
func (d Dir) Sweep(context.Context) error {
	for _, dir := range []string{"", "nar"} {
		entries, err := os.ReadDir(filepath.Join(string(d), dir))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if !strings.HasPrefix(entry.Name(), temporaryPrefix) {
				continue
			}
			info, err := entry.Info()
			if err == nil && time.Since(info.ModTime()) > Leftover {
				err = os.Remove(filepath.Join(string(d), dir, entry.Name()))
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

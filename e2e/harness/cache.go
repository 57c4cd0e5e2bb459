package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// CacheDir returns where closures that take long to make are kept between
// runs: $COPY_CLOSURE_TEST_CACHE, or copy-closure-test in the user's cache, or in
// the directory for temporary files where the user has no home.
func CacheDir() (string, error) {
	if dir := os.Getenv("COPY_CLOSURE_TEST_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	return filepath.Join(dir, "copy-closure-test"), nil
}

// lockCache returns the place in the cache for something of that name, which
// may be there already, and keeps other processes from making it until the
// returned file is closed.
func lockCache(name string) (dir string, lock *os.File, err error) {
	cache, err := CacheDir()
	if err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", nil, err
	}
	lock, err = os.OpenFile(filepath.Join(cache, name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", nil, errors.Join(err, lock.Close())
	}
	return filepath.Join(cache, name), lock, nil
}

// cached returns the closure of that name from the cache, or makes it: fill
// puts trees, named as the store paths they will be, into DIR/contents and
// returns what they are, references first.
func cached(name string, fill func(dir string) ([]Object, error)) (*cachedClosure, error) {
	dir, lock, err := lockCache(name)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	objects, err := readObjects(dir)
	if errors.Is(err, fs.ErrNotExist) {
		objects, err = fillCache(dir, fill)
	}
	if err != nil {
		return nil, fmt.Errorf("closure %s: %w", name, err)
	}
	return &cachedClosure{Closure: newClosure(objects), dir: dir}, nil
}

func fillCache(dir string, fill func(dir string) ([]Object, error)) ([]Object, error) {
	fresh := dir + ".new"
	if err := RemoveAll(fresh); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(fresh, "contents"), 0o755); err != nil {
		return nil, err
	}
	objects, err := fill(fresh)
	if err != nil {
		return nil, errors.Join(err, RemoveAll(fresh))
	}
	data, err := json.Marshal(objects)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(fresh, "closure.json"), data, 0o644); err != nil {
		return nil, err
	}
	return objects, os.Rename(fresh, dir)
}

func readObjects(dir string) ([]Object, error) {
	data, err := os.ReadFile(filepath.Join(dir, "closure.json"))
	if err != nil {
		return nil, err
	}
	var objects []Object
	return objects, json.Unmarshal(data, &objects)
}

// TinyDatabase returns a store that has the database of a [TinyClosure] and no
// files: for questions that only the database is asked. The store is kept in
// [CacheDir] and shared; it is only to be read.
func TinyDatabase(ctx context.Context, n int) (*Store, *Closure, error) {
	objects := make([]Object, n)
	for i := range objects {
		tinyObject(objects, i, "tiny", tinyRefs(i))
	}
	dir, lock, err := lockCache(fmt.Sprintf("database-%d", n))
	if err != nil {
		return nil, nil, err
	}
	defer lock.Close()
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		err = fillDatabase(ctx, dir, objects)
		if err != nil {
			return nil, nil, fmt.Errorf("database of %d paths: %w", n, err)
		}
	}
	return &Store{Root: dir}, newClosure(objects), nil
}

func fillDatabase(ctx context.Context, dir string, objects []Object) error {
	fresh := dir + ".new"
	if err := RemoveAll(fresh); err != nil {
		return err
	}
	s, err := NewStore(ctx, fresh)
	if err != nil {
		return err
	}
	if err := s.register(ctx, objects); err != nil {
		return err
	}
	return os.Rename(fresh, dir)
}

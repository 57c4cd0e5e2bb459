package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// StoreDir is the logical directory of every store here.
const StoreDir = "/nix/store"

// A Store is a scratch store of a real Nix: its paths are called /nix/store/…
// and their files lie in Root/nix/store.
type Store struct {
	Root string
}

// nixConf makes Nix independent of the machine: no caches, no build users.
const nixConf = `build-users-group =
experimental-features = nix-command
substituters =
`

// NewStore has Nix make a store below root, which is created.
func NewStore(ctx context.Context, root string) (*Store, error) {
	s := &Store{Root: root}
	if err := WriteNixConf(filepath.Join(root, "etc/nix")); err != nil {
		return nil, err
	}
	if _, err := s.Nix(ctx, nil, "nix-store", "--init"); err != nil {
		return nil, err
	}
	return s, nil
}

// WriteNixConf makes dir one that NIX_CONF_DIR can name.
func WriteNixConf(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "nix.conf"), []byte(nixConf), 0o644)
}

// Env returns the variables (K=V) with which Nix's programs use this store and
// no configuration of the machine or the user.
func (s *Store) Env() []string {
	return []string{
		"NIX_REMOTE=local?root=" + s.Root,
		"NIX_CONF_DIR=" + filepath.Join(s.Root, "etc/nix"),
		"NIX_USER_CONF_FILES=",
		"XDG_CACHE_HOME=" + filepath.Join(s.Root, "cache"),
	}
}

// Physical returns where the files of a store path lie.
func (s *Store) Physical(path string) string { return filepath.Join(s.Root, path) }

// Nix runs one of Nix's programs on the store and returns its standard output.
// An error carries what it wrote to standard error.
func (s *Store) Nix(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	stdout, _, err := s.run(ctx, stdin, args...)
	return stdout, err
}

func (s *Store) run(ctx context.Context, stdin io.Reader, args ...string) (stdout, stderr string, err error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), s.Env()...)
	cmd.Stdin = stdin
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), errs.String(), fmt.Errorf("%s: %w: %s",
			strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), errs.String(), nil
}

// verifySteps is what Nix says when it verifies a store and finds nothing.
var verifySteps = map[string]bool{
	"reading the Nix store...":   true,
	"checking path existence...": true,
	"checking link hashes...":    true,
	"checking store hashes...":   true,
	// Beside a garbage collection.
	"waiting for the big garbage collector lock...": true,
	// Of a store that has no configuration of its own.
	"warning: the group 'nixbld' specified in 'build-users-group' does not exist": true,
}

// Verify has Nix compare the database with the contents of all paths. Nix's
// exit code is not believed alone: its messages must name no problem either.
func (s *Store) Verify(ctx context.Context) error {
	_, stderr, err := s.run(ctx, nil, "nix-store", "--verify", "--check-contents")
	if err != nil {
		return err
	}
	for line := range strings.Lines(stderr) {
		line = strings.TrimSpace(line)
		if !verifySteps[line] {
			return fmt.Errorf("nix-store --verify --check-contents: %s", strings.TrimSpace(stderr))
		}
	}
	return nil
}

// ValidPaths returns the store's valid paths, sorted.
func (s *Store) ValidPaths(ctx context.Context) ([]string, error) {
	out, err := s.Nix(ctx, nil, "nix", "--extra-experimental-features", "nix-command", "path-info", "--all")
	if err != nil {
		return nil, err
	}
	paths := strings.Fields(out)
	slices.Sort(paths)
	return paths, nil
}

// Strays returns the names in the store's directory that do not belong to a
// valid path, sorted: half-written paths, locks, temporary files.
func (s *Store) Strays(ctx context.Context) ([]string, error) {
	valid, err := s.ValidPaths(ctx)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(s.Physical(StoreDir))
	if err != nil {
		return nil, err
	}
	var strays []string
	for _, e := range entries {
		_, known := slices.BinarySearch(valid, StoreDir+"/"+e.Name())
		if !known && e.Name() != ".links" {
			strays = append(strays, e.Name())
		}
	}
	return strays, nil
}

// CollectGarbage deletes what no root keeps alive.
func (s *Store) CollectGarbage(ctx context.Context) error {
	_, err := s.Nix(ctx, nil, unseen("nix-store", "--gc")...)
	return err
}

// Delete deletes a path and everything that refers to it.
func (s *Store) Delete(ctx context.Context, path string) error {
	out, err := s.Nix(ctx, nil, "nix-store", "--query", "--referrers-closure", path)
	if err != nil {
		return err
	}
	_, err = s.Nix(ctx, nil, append(unseen("nix-store", "--delete"), strings.Fields(out)...)...)
	return err
}

// unseen returns a command line for a collector of garbage to which, if root
// asks, no other processes exist. Nix keeps what any process has open or in
// its environment, and so tests that run side by side would keep each other's
// paths.
func unseen(line ...string) []string {
	if os.Getuid() != 0 {
		return line
	}
	return append([]string{"unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"}, line...)
}

// Damage changes one byte in the middle of a file, so that its contents no
// longer fit the database. For a directory that is the first file in it that
// is not empty. Other stores that share the file by hard links keep theirs.
func (s *Store) Damage(path string) error {
	file, err := firstFile(s.Physical(path))
	if err != nil {
		return err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	data[len(data)/2] ^= 1
	return replaceFile(file, data)
}

func firstFile(root string) (string, error) {
	found := ""
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		if info, err := e.Info(); err != nil || info.Size() == 0 {
			return err
		}
		found = path
		return filepath.SkipAll
	})
	if err == nil && found == "" {
		err = fmt.Errorf("%s: no file with contents", root)
	}
	return found, err
}

// replaceFile puts a new file in the place of a read-only one in a directory
// that may be read-only as well.
func replaceFile(file string, data []byte) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	dir := filepath.Dir(file)
	dirInfo, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	return errors.Join(
		os.Remove(file),
		os.WriteFile(file, data, 0o600),
		os.Chmod(file, info.Mode().Perm()),
		os.Chmod(dir, dirInfo.Mode().Perm()),
	)
}

// RemoveAll removes a tree with read-only directories in it, as a store has.
func RemoveAll(root string) error {
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		return os.Chmod(path, 0o700)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, os.RemoveAll(root))
}

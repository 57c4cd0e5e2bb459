package localstore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// maxLinks is how many symbolic links a path may lead through, as in Linux.
const maxLinks = 40

// Resolve finds the store path that arg means: a store path, a path inside one, or
// links that lead to one, such as ./result. It also returns what of arg lies
// beneath the store path, without a leading slash. The store path need not be valid.
func (s *Store) Resolve(ctx context.Context, arg string) (p nix.StorePath, rest string, err error) {
	return Resolve(ctx, s.config.StoreDir, s.config.RealDir, arg)
}

// Resolve is Store.Resolve for a store that cannot be opened here: its paths are
// named in dir and lie in realDir. Neither directory has to exist.
func Resolve(ctx context.Context, dir nix.StoreDir, realDir, arg string) (p nix.StorePath, rest string, err error) {
	path, err := filepath.Abs(arg)
	if err != nil {
		return nix.StorePath{}, "", err
	}
	r := resolver{dir, realDir}
	path, err = r.followLinks(ctx, path)
	if err != nil {
		return nix.StorePath{}, "", fmt.Errorf("resolve %s: %w", arg, err)
	}
	p, rest, ok := r.split(path)
	if !ok {
		return nix.StorePath{}, "", fmt.Errorf("resolve %s: %q is not in the store %s", arg, path, dir)
	}
	return p, rest, nil
}

// A resolver knows the logical and the real directory of a store.
type resolver struct {
	dir     nix.StoreDir
	realDir string
}

// split splits a path beneath either directory.
func (r resolver) split(path string) (nix.StorePath, string, bool) {
	if inside, ok := strings.CutPrefix(path, r.realDir+"/"); ok {
		path = string(r.dir) + "/" + inside
	}
	p, rest, err := r.dir.Split(path)
	return p, rest, err == nil
}

// followLinks resolves the links in an absolute path, element by element, until its
// text is in the store or it has no more of them. Nothing of a path in the store is
// looked at: on a machine whose store is under another root, /nix may be missing, and
// links within the store are about that root.
func (r resolver) followLinks(ctx context.Context, path string) (string, error) {
	done, links := "/", 0
	for todo := path[1:]; todo != ""; {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if whole := filepath.Join(done, todo); r.holds(whole) {
			return whole, nil
		}
		var name string
		name, todo, _ = strings.Cut(todo, "/")
		next := filepath.Join(done, name)
		st, err := os.Lstat(next)
		if err != nil {
			return "", err
		}
		if st.Mode()&os.ModeSymlink == 0 {
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("it leads through more than %d links", maxLinks)
		}
		target, err := os.Readlink(next)
		if err != nil {
			return "", err
		}
		if filepath.IsAbs(target) {
			done = "/"
		}
		todo = strings.Trim(filepath.Join("/", done, target, todo), "/")
		done = "/"
	}
	return done, nil
}

// holds reports whether a path is in the store.
func (r resolver) holds(path string) bool {
	_, _, ok := r.split(path)
	return ok
}

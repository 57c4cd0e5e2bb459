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
	path, err := filepath.Abs(arg)
	if err != nil {
		return nix.StorePath{}, "", err
	}
	if p, rest, ok := s.split(path); ok {
		return p, rest, nil
	}
	path, err = s.followLinks(ctx, path)
	if err != nil {
		return nix.StorePath{}, "", fmt.Errorf("resolve %s: %w", arg, err)
	}
	p, rest, ok := s.split(path)
	if !ok {
		return nix.StorePath{}, "", fmt.Errorf("resolve %s: %q is not in the store %s", arg, path, s.config.StoreDir)
	}
	return p, rest, nil
}

// split splits a path beneath the logical or the real store directory.
func (s *Store) split(path string) (nix.StorePath, string, bool) {
	if inside, ok := strings.CutPrefix(path, s.config.RealDir+"/"); ok {
		path = string(s.config.StoreDir) + "/" + inside
	}
	p, rest, err := s.config.StoreDir.Split(path)
	return p, rest, err == nil
}

// followLinks resolves the links in an absolute path, element by element, until it
// is in the store or has no more of them. Links within the store may not be
// followed: in a store under another root they are about that root.
func (s *Store) followLinks(ctx context.Context, path string) (string, error) {
	done, links := "/", 0
	for todo := path[1:]; todo != ""; {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		var name string
		name, todo, _ = strings.Cut(todo, "/")
		next := filepath.Join(done, name)
		if _, _, ok := s.split(next); ok {
			return filepath.Join(next, todo), nil
		}
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

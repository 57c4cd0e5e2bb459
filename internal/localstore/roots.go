package localstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// AddRoot makes link a symbolic link to the valid path p, and a root of garbage
// collection: a direct one if it is in the store's gcroots directory, else an
// indirect one, which holds until the link is deleted. It replaces nothing but
// links into the store.
func (s *Store) AddRoot(ctx context.Context, link string, p nix.StorePath) error {
	link, err := filepath.Abs(link)
	if err != nil {
		return err
	}
	if err := s.prepareRoot(ctx, p); err != nil {
		return fmt.Errorf("add root %s: %w", link, err)
	}
	if err := s.linkRoot(link, p); err != nil {
		return fmt.Errorf("add root %s for %s: %w", link, p, nix.CheckNoSpace(err))
	}
	return s.outlastCollector(ctx)
}

// prepareRoot holds a path that must be valid. A garbage collection under way
// knows then that it is alive.
func (s *Store) prepareRoot(ctx context.Context, p nix.StorePath) error {
	if err := s.mayWrite(); err != nil {
		return err
	}
	if err := s.Hold(ctx, []nix.StorePath{p}); err != nil {
		return err
	}
	_, err := s.PathInfo(ctx, p)
	return err
}

func (s *Store) linkRoot(link string, p nix.StorePath) error {
	target, err := os.Readlink(link)
	if err == nil && !s.isInStore(target) {
		return fmt.Errorf("a link to %s is there already, which is not in the store", target)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("something else is there already: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return err
	}
	if err := replaceLink(link, p.String()); err != nil {
		return err
	}
	if isBeneath(link, s.config.state("gcroots")) || isBeneath(link, s.config.state("profiles")) {
		return nil
	}
	return s.linkIndirectly(link)
}

// replaceLink makes a symbolic link, in place of one that is there. Its draft has one
// name, so that what a killed process has left is replaced. Where two processes replace
// one link, either may delete or rename the other's draft: who finds none begins again.
func replaceLink(link, target string) error {
	draft := link + ".tmp-copy-closure"
	for {
		if old, err := os.Readlink(link); err == nil && old == target {
			return nil
		}
		err := os.Symlink(target, draft)
		if errors.Is(err, fs.ErrExist) {
			if err := os.Remove(draft); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		err = os.Rename(draft, link)
		if err == nil {
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(err, os.Remove(draft))
		}
	}
}

// isInStore reports whether a link's target is a store path or beneath one.
func (s *Store) isInStore(target string) bool {
	_, _, err := s.config.StoreDir.Split(target)
	return err == nil
}

func isBeneath(path, dir string) bool { return strings.HasPrefix(path, dir+"/") }

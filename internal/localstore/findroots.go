package localstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// roots says of each path that is a root what makes it one.
type roots map[nix.StorePath]string

func (r roots) add(p nix.StorePath, by string) { r[p] = by }

// findRoots finds all roots of garbage collection. The caller holds the collector's
// lock, so that no temporary root comes to be without its being told.
func (s *Store) findRoots(ctx context.Context) (roots, error) {
	found := make(roots)
	for _, dir := range []string{"gcroots", "profiles"} {
		if err := s.findLinks(ctx, found.add, s.config.state(dir)); err != nil {
			return nil, err
		}
	}
	if err := s.findTempRoots(found, nil); err != nil {
		return nil, err
	}
	if err := s.findRuntimeRoots(ctx, found); err != nil {
		return nil, err
	}
	return found, nil
}

// findLinks finds the roots among the links below dir, direct and indirect.
func (s *Store) findLinks(ctx context.Context, found func(p nix.StorePath, link string), dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, fs.ErrNotExist):
			return nil // deleted meanwhile, or never made
		case err != nil:
			return err
		case d.Type()&fs.ModeSymlink != 0:
			s.findLink(found, path)
		case d.Type().IsRegular():
			if p, err := s.config.StoreDir.ParseBase(d.Name()); err == nil {
				found(p, path)
			}
		}
		return nil
	})
}

// findLink follows one link, or two where the first is indirect. What leads
// elsewhere is no root.
func (s *Store) findLink(found func(p nix.StorePath, link string), link string) {
	for range 2 {
		target, err := os.Readlink(link)
		if err != nil {
			return
		}
		if p, _, err := s.config.StoreDir.Split(target); err == nil {
			found(p, link)
			return
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(link), target)
		}
		link = target
	}
}

// findTempRoots reads the roots of all processes that are alive. A file that this process
// has locked looks as if it were of such a one: ofDead, if not nil, is skipped.
func (s *Store) findTempRoots(found roots, ofDead *os.File) error {
	dir := s.config.state("temproots")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		alive := func(f *os.File) error {
			if isSameFile(f, ofDead) {
				return nil
			}
			paths, err := s.readTempRoots(f)
			for _, p := range paths {
				found.add(p, "the process of "+f.Name())
			}
			return err
		}
		if err := s.visitTempRoots(filepath.Join(dir, entry.Name()), nil, alive); err != nil {
			return err
		}
	}
	return nil
}

func isSameFile(f, g *os.File) bool {
	if g == nil {
		return false
	}
	a, errA := f.Stat()
	b, errB := g.Stat()
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// findRuntimeRoots finds what running processes use, as far as this user may know:
// a path that a process has open, runs, or names in its environment.
func (s *Store) findRuntimeRoots(ctx context.Context, found roots) error {
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, process := range processes {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		by := "the process " + filepath.Base(process)
		links, err := filepath.Glob(process + "/fd/*")
		if err != nil {
			return err
		}
		for _, link := range append(links, process+"/exe", process+"/cwd", process+"/root") {
			if target, err := os.Readlink(link); err == nil {
				s.mention(found, []byte(target), by)
			}
		}
		for _, name := range []string{"maps", "environ"} {
			if text, err := os.ReadFile(fmt.Sprintf("%s/%s", process, name)); err == nil {
				s.mention(found, text, by)
			}
		}
	}
	return nil
}

// mention finds store paths in a text.
func (s *Store) mention(found roots, text []byte, by string) {
	for _, dir := range []string{string(s.config.StoreDir), s.config.RealDir} {
		for rest := text; ; {
			_, after, ok := bytes.Cut(rest, []byte(dir+"/"))
			if !ok {
				break
			}
			rest = after
			base := string(after[:min(len(after), 256)])
			if end := strings.IndexFunc(base, notInName); end >= 0 {
				base = base[:end]
			}
			if p, err := s.config.StoreDir.ParseBase(base); err == nil {
				found[p] = by
			}
		}
	}
}

// notInName reports whether a character cannot be in a store path's base name.
func notInName(r rune) bool {
	switch {
	case '0' <= r && r <= '9', 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z':
		return false
	}
	return !strings.ContainsRune("+-._?=", r)
}

package remote

import (
	"context"
	"fmt"
	"slices"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// serverInfoBatch is how many path infos are in memory while a client gets them.
const serverInfoBatch = 1024

func (s *server) queryValidPaths(ctx context.Context) error {
	lock, substitute := s.in.Bool(), s.in.Bool()
	a := asked{}
	err := s.eachAsked("tell valid paths", func(some []nix.StorePath) error {
		return s.lookUp(ctx, &a, some, lock, substitute)
	})
	if err == nil {
		err = s.substitute(ctx, &a)
	}
	if err != nil {
		return err
	}
	s.out.Paths(a.valid.sorted())
	return nil
}

// hold takes temporary roots as far as the session may. A reader gets his answer
// also where the store cannot take any.
func (s *server) hold(ctx context.Context, paths []nix.StorePath) error {
	if !s.options.Write && !s.options.Hold {
		return nil
	}
	err := s.backend.Hold(ctx, paths)
	if err == nil {
		return nil
	}
	if s.options.Write {
		return fmt.Errorf("hold %d paths: %w", len(paths), err)
	}
	s.options.Logger.Warn("paths are not held against garbage collection", "paths", len(paths), "error", err)
	return nil
}

// substitute lets the substituter try what is missing. As in Nix its failure is
// only a warning, and derivations are not tried.
func (s *server) substitute(ctx context.Context, a *asked) error {
	a.missing = slices.DeleteFunc(a.missing, nix.StorePath.IsDerivation)
	if len(a.missing) == 0 || !s.options.Write || s.options.Substituter == nil {
		return nil
	}
	if a.skipped > 0 {
		s.options.Logger.Warn("too many paths for one question to the caches", "asked", len(a.missing), "not asked", a.skipped)
	}
	if err := s.options.Substituter.Substitute(ctx, sortedPaths(a.missing)); err != nil {
		s.options.Logger.Warn("substitution failed", "paths", len(a.missing), "error", err)
	}
	valid, err := s.backend.ValidPaths(ctx, a.missing)
	if err != nil {
		return fmt.Errorf("substitute: %w", err)
	}
	a.valid.add(valid)
	return nil
}

func (s *server) queryPathInfos(ctx context.Context) error {
	paths, err := s.askedPaths(ctx, "tell path infos")
	if err != nil {
		return err
	}
	for batch := range slices.Chunk(paths, serverInfoBatch) {
		infos, err := s.backend.PathInfos(ctx, batch)
		if err != nil {
			return fmt.Errorf("tell path infos: %w", err)
		}
		slices.SortFunc(infos, func(a, b *nix.PathInfo) int { return a.Path.Compare(b.Path) })
		for _, info := range infos {
			s.writePathInfo(info)
		}
	}
	s.out.String("")
	return nil
}

func (s *server) writePathInfo(info *nix.PathInfo) {
	s.out.Path(info.Path)
	s.out.Path(info.Deriver)
	s.out.Paths(info.References)
	s.out.Uint64(uint64(info.NARSize)) // to download
	s.out.Uint64(uint64(info.NARSize))
	if !s.since(4) {
		return
	}
	s.out.String(info.NARHash.String())
	s.out.String(info.CA)
	signatures := slices.Sorted(slices.Values(info.Signatures))
	s.out.Strings(slices.Compact(signatures))
}

func (s *server) queryClosure(ctx context.Context) error {
	includeOutputs := s.in.Bool()
	roots := s.in.Paths(s.dir, serverMaxRoots)
	if err := s.request("tell a closure"); err != nil {
		return err
	}
	closure := make(map[nix.StorePath]bool)
	for len(roots) > 0 {
		infos, err := s.backend.Closure(ctx, roots)
		if err != nil {
			return fmt.Errorf("tell a closure: %w", err)
		}
		roots = nil
		for _, info := range infos {
			if closure[info.Path] {
				continue
			}
			closure[info.Path] = true
			if includeOutputs && info.Path.IsDerivation() {
				outputs, err := s.validOutputs(ctx, info)
				if err != nil {
					return fmt.Errorf("tell a closure with outputs: %w", err)
				}
				roots = append(roots, outputs...)
			}
		}
		roots = slices.DeleteFunc(roots, func(p nix.StorePath) bool { return closure[p] })
	}
	paths := make([]nix.StorePath, 0, len(closure))
	for p := range closure {
		paths = append(paths, p)
	}
	s.out.Paths(sortedPaths(paths))
	return nil
}

// sortedPaths sorts paths in place, as Nix's sets are, and returns each once.
func sortedPaths(paths []nix.StorePath) []nix.StorePath {
	slices.SortFunc(paths, nix.StorePath.Compare)
	return slices.Compact(paths)
}

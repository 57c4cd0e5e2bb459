package remote

import (
	"context"
	"fmt"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// Limits on what one request makes a server do. docs/limits.md has all of them.
const (
	// SessionTempRoots is how many bytes of temporary roots a session may have.
	SessionTempRoots = 64 << 20

	serverMaxRoots = 1 << 17 // paths of which the closure, or an export, is asked for
	serverMaxAsked = 10_000  // paths about which caches are asked for one question

	serverMaxAddedRoots = 1 << 10 // indirect roots by an untrusted client
)

// askedPaths reads a list of paths of which only the valid ones matter. Long lists are
// looked up as they arrive, so that memory is bounded by what the store has and not by
// what the client sends. In an answer to a short list there may be paths that are not
// valid.
func (s *server) askedPaths(ctx context.Context, what string) ([]nix.StorePath, error) {
	var paths pathSet
	chunks := 0
	err := s.eachAsked(what, func(some []nix.StorePath) error {
		if chunks++; chunks > 1 {
			var err error
			if some, err = s.backend.ValidPaths(ctx, some); err != nil {
				return err
			}
		}
		paths.add(some)
		return nil
	})
	return paths.sorted(), err
}

// eachAsked reads a list of paths and calls use with some of them at a time, until that
// fails. The list is read in any case.
func (s *server) eachAsked(what string, use func([]nix.StorePath) error) error {
	var useErr error
	s.in.EachPaths(s.dir, wire.MaxPaths, func(some []nix.StorePath) {
		if useErr == nil {
			useErr = use(some)
		}
	})
	if err := s.request(what); err != nil {
		return err
	}
	if useErr != nil {
		return fmt.Errorf("%s: %w", what, useErr)
	}
	return nil
}

// A pathSet gathers paths, of which many may come more than once.
type pathSet struct {
	paths []nix.StorePath
	size  int // at which duplicates are dropped next
}

func (set *pathSet) add(some []nix.StorePath) {
	set.paths = append(set.paths, some...)
	if len(set.paths) >= max(set.size, 1<<15) {
		set.paths = sortedPaths(set.paths)
		set.size = 2 * len(set.paths)
	}
}

func (set *pathSet) sorted() []nix.StorePath { return sortedPaths(set.paths) }

// An asked is what a client asks of some paths: which are valid.
type asked struct {
	valid   pathSet
	missing []nix.StorePath // those that caches are asked about
	skipped int             // that they are not asked about
}

// lookUp adds some paths to what is asked.
func (s *server) lookUp(ctx context.Context, a *asked, some []nix.StorePath, lock, substitute bool) error {
	valid, err := s.holdValid(ctx, some, lock)
	if err != nil {
		return err
	}
	a.valid.add(valid)
	if !substitute || !s.options.Write || s.options.Substituter == nil {
		return nil
	}
	for _, p := range without(some, valid) {
		switch {
		case p.IsDerivation(): // caches have none
		case len(a.missing) < serverMaxAsked:
			a.missing = append(a.missing, p)
		default:
			a.skipped++
		}
	}
	return nil
}

// holdValid returns which of paths are valid, and takes temporary roots first if lock is
// set. As in Nix, those of a client who may write are taken for all paths: he is about to
// add those that are missing. Others get them for valid paths only.
func (s *server) holdValid(ctx context.Context, paths []nix.StorePath, lock bool) ([]nix.StorePath, error) {
	if !lock || s.options.Write {
		if lock {
			if err := s.hold(ctx, paths); err != nil {
				return nil, err
			}
		}
		return s.backend.ValidPaths(ctx, paths)
	}
	valid, err := s.backend.ValidPaths(ctx, paths)
	if err != nil || len(valid) == 0 || !s.options.Hold {
		return valid, err
	}
	if err := s.hold(ctx, valid); err != nil {
		return nil, err
	}
	return s.backend.ValidPaths(ctx, valid) // some may have been collected before they were held
}

// without returns those of paths that are not among others.
func without(paths, others []nix.StorePath) []nix.StorePath {
	there := make(map[nix.StorePath]bool, len(others))
	for _, p := range others {
		there[p] = true
	}
	var rest []nix.StorePath
	for _, p := range paths {
		if !there[p] {
			rest = append(rest, p)
		}
	}
	return rest
}

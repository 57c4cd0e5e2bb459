package remote

import (
	"context"
	"fmt"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// cmdForesee asks, among the requests of the serve protocol, what the server's caches
// have. Only a server that said so in its offer knows it.
const cmdForesee = 0x65726f66 // "fore"

// maxCacheText is the length of what a cache is called.
const maxCacheText = 4096

// A CachedPath is a path that a cache of the far end has.
type CachedPath struct {
	Path     nix.StorePath
	NARHash  nix.Hash
	Download int64  // bytes
	Cache    string // for people
}

// A SearchingSubstituter is a Substituter that can tell where it would take paths from.
type SearchingSubstituter interface {
	Substituter
	// Search returns those of paths that caches have, each once, and changes nothing in
	// the store.
	Search(ctx context.Context, paths []nix.StorePath) ([]CachedPath, error)
}

// Foresees reports whether the far end can tell what its caches have. It is known after
// the first answer.
func (s *Store) Foresees() bool {
	return s.OffersPeer() && s.first.prelude.offer.foresees
}

// Foresee returns what the far end's caches have of paths. It changes nothing there.
func (s *Store) Foresee(ctx context.Context, paths []nix.StorePath) ([]CachedPath, error) {
	var cached []CachedPath
	s.rounds.Add(1)
	err := s.first.ask(ctx, "ask what its caches have", func(w *wire.Writer) {
		w.Uint64(cmdForesee)
		w.Paths(paths)
	}, func(r *wire.Reader) (err error) {
		cached, err = s.readCachedPaths(r, paths)
		return err
	})
	return cached, err
}

func (s *Store) readCachedPaths(r *wire.Reader, asked []nix.StorePath) ([]CachedPath, error) {
	var cached []CachedPath
	var paths []nix.StorePath
	for {
		path := r.OptionalPath(s.dir)
		if err := r.Err(); err != nil {
			return nil, err
		}
		if path.IsZero() {
			return cached, checkSubset("cached paths", paths, asked)
		}
		if len(cached) == len(asked) {
			return nil, &wire.FormatError{Msg: "it tells of more cached paths than were asked for"}
		}
		c := CachedPath{Path: path}
		hash, err := nix.ParseHash(r.String(wire.MaxField))
		c.NARHash, c.Download = hash, r.Int64()
		c.Cache = r.String(maxCacheText)
		if r.Err() == nil && err != nil {
			r.Fail(&wire.FormatError{Msg: err.Error()})
		}
		if err := r.Err(); err != nil {
			return nil, fmt.Errorf("what a cache has of %s: %w", path, err)
		}
		cached, paths = append(cached, c), append(paths, path)
	}
}

// foresees reports whether the client may ask what the caches have. On behalf of a reader
// they are asked only if he plans a push.
func (s *server) foresees() bool {
	return s.options.Foresees && (s.options.Write || s.options.Plans)
}

// foresee answers what the caches have of the first paths, up to serverMaxAsked. As in
// substitution a failure is only a warning, and derivations are not looked for.
func (s *server) foresee(ctx context.Context) error {
	var wanted []nix.StorePath
	err := s.eachAsked("tell what the caches have", func(some []nix.StorePath) error {
		for _, p := range some {
			if !p.IsDerivation() && len(wanted) < serverMaxAsked {
				wanted = append(wanted, p)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	searcher, ok := s.options.Substituter.(SearchingSubstituter)
	if !ok || !s.foresees() {
		return &wire.FormatError{Msg: "the client asks what the caches have, which was not offered"}
	}
	wanted = sortedPaths(wanted)
	cached, err := searcher.Search(ctx, wanted)
	if err != nil {
		s.options.Logger.Warn("what the caches have cannot be told", "paths", len(wanted), "error", err)
		cached = nil
	}
	for _, c := range cached {
		s.out.Path(c.Path)
		s.out.String(c.NARHash.String())
		s.out.Uint64(uint64(c.Download))
		s.out.String(c.Cache[:min(len(c.Cache), maxCacheText)])
	}
	s.out.String("")
	return nil
}

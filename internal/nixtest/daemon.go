package nixtest

import (
	"context"
	"maps"
	"slices"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// AllPaths returns all valid paths, sorted.
func (s *Store) AllPaths(ctx context.Context) ([]nix.StorePath, error) {
	return s.All(), context.Cause(ctx)
}

// Referrers returns the valid paths that refer to p, sorted.
func (s *Store) Referrers(ctx context.Context, p nix.StorePath) ([]nix.StorePath, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := make(map[nix.StorePath]bool)
	for path, o := range s.objects {
		if slices.Contains(o.Info.References, p) {
			found[path] = true
		}
	}
	return sortedKeys(found), context.Cause(ctx)
}

// PathOfHashPart returns the valid path with that hash part, zero if there is none.
func (s *Store) PathOfHashPart(ctx context.Context, part string) (nix.StorePath, error) {
	for _, p := range s.All() {
		if p.HashPart() == part {
			return p, nil
		}
	}
	return nix.StorePath{}, context.Cause(ctx)
}

// AddSignatures adds to those of p; the error wraps nix.ErrNotValid.
func (s *Store) AddSignatures(ctx context.Context, p nix.StorePath, signatures []string) error {
	o, err := s.object(p)
	if err != nil {
		return err
	}
	o.Info = cloneInfo(o.Info)
	o.Info.Signatures = nix.MergeSignatures(o.Info.Signatures, signatures)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[p] = o
	return nil
}

// AddRoot remembers a root for Roots; the error wraps nix.ErrNotValid.
func (s *Store) AddRoot(ctx context.Context, link string, p nix.StorePath) error {
	if _, err := s.object(p); err != nil {
		return err
	}
	return s.addRoot(link, p)
}

// AddIndirectRoot remembers a root that leads nowhere yet.
func (s *Store) AddIndirectRoot(ctx context.Context, link string) error {
	return s.addRoot(link, nix.StorePath{})
}

func (s *Store) addRoot(link string, p nix.StorePath) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roots[link] = p
	return nil
}

// Roots returns what AddRoot and AddIndirectRoot have made.
func (s *Store) Roots(ctx context.Context) (map[string]nix.StorePath, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.roots), context.Cause(ctx)
}

// Realisation returns what AddRealisation was given.
func (s *Store) Realisation(ctx context.Context, id nix.DrvOutput) (*nix.Realisation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, found := s.built[id]
	if !found {
		return nil, nix.ErrNoRealisation
	}
	known := *r
	return &known, context.Cause(ctx)
}

// AddRealisation keeps r, whatever it says.
func (s *Store) AddRealisation(ctx context.Context, r *nix.Realisation) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.built[r.ID] = r
	return context.Cause(ctx)
}

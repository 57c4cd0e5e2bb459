package delta

import (
	"context"
	"slices"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A Store is where bases are looked for.
type Store interface {
	AllPaths(ctx context.Context) ([]nix.StorePath, error)
	// PathInfos returns what is known of those of paths that are valid.
	PathInfos(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error)
}

// FindBases chooses a base for each of wants, where there is one, among all valid paths
// of a store. hold, if not nil, keeps paths from garbage collection, valid or not: it is
// told of those that were chosen before they are looked at.
func FindBases(ctx context.Context, s Store, hold func(context.Context, []nix.StorePath) error, wants []nix.StorePath) (map[nix.StorePath]*nix.PathInfo, error) {
	all, err := s.AllPaths(ctx)
	if err != nil {
		return nil, err
	}
	bases := NewBases(candidates(ctx, s, all, wants))
	chosen := make(map[nix.StorePath]nix.StorePath)
	var list []nix.StorePath
	for _, want := range wants {
		if base, ok := bases.Choose(want, nil); ok {
			chosen[want] = base
			list = append(list, base)
		}
	}
	slices.SortFunc(list, nix.StorePath.Compare)
	list = slices.Compact(list)
	if hold != nil {
		if err := hold(ctx, list); err != nil {
			return nil, err
		}
	}
	infos, err := s.PathInfos(ctx, list)
	if err != nil {
		return nil, err
	}
	valid := make(map[nix.StorePath]*nix.PathInfo, len(infos))
	for _, info := range infos {
		valid[info.Path] = info
	}
	found := make(map[nix.StorePath]*nix.PathInfo)
	for want, base := range chosen {
		if info := valid[base]; info != nil {
			found[want] = info
		}
	}
	return found, nil
}

// candidates tells of those with a wanted name also how old they are.
func candidates(ctx context.Context, s Store, all, wants []nix.StorePath) []Candidate {
	names := make(map[string]bool, len(wants))
	for _, want := range wants {
		names[want.Name()] = true
	}
	var named []nix.StorePath
	for _, path := range all {
		if names[path.Name()] {
			named = append(named, path)
		}
	}
	infos, _ := s.PathInfos(ctx, named) // without them any will do
	known := make(map[nix.StorePath]*nix.PathInfo, len(infos))
	for _, info := range infos {
		known[info.Path] = info
	}
	list := make([]Candidate, 0, len(all))
	for _, path := range all {
		c := Candidate{Path: path}
		if info := known[path]; info != nil {
			c.Registered = info.Registered
		}
		list = append(list, c)
	}
	return list
}

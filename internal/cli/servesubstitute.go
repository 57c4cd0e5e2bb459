package cli

import (
	"context"
	"sync"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
)

// A serverSubstituter takes paths from the caches of this machine's configuration into
// the store that is served. What a client says has no influence on which they are.
type serverSubstituter struct {
	*program
	local *localEnd

	mu     sync.Mutex
	opened bool
	source *cacheSource // nil: there are no caches
}

// Substitute implements remote.Substituter.
func (s *serverSubstituter) Substitute(ctx context.Context, paths []nix.StorePath) error {
	if s.local.nix != nil {
		_, err := s.local.nix.ValidPaths(ctx, paths, true, true)
		return err
	}
	source, err := s.caches(ctx)
	if err != nil || source == nil {
		return err
	}
	infos, err := source.PathInfos(ctx, paths)
	if err != nil {
		return err
	}
	if infos, err = s.complete(ctx, infos); err != nil {
		return err
	}
	offers, err := source.Offers(ctx, infos)
	if err != nil {
		return err
	}
	writer := s.local.store.NewImport(localstore.ImportOptions{})
	defer writer.Close()
	return closure.Copy(ctx, &closure.Plan{Fetch: offers}, nil, directTarget{s.local.store, writer}, closure.CopyOptions{
		Caches:     source,
		CacheLanes: cacheLanes,
		BestEffort: true,
		Logger:     s.log,
	})
}

func (s *serverSubstituter) caches(ctx context.Context) (*cacheSource, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened {
		return s.source, nil
	}
	caches, err := s.openSubstituters(ctx, cacheRequest{checkSigs: true})
	if err != nil {
		return nil, err
	}
	s.opened = true
	if caches != nil {
		s.source = newCacheSource(caches, s.local)
	}
	return s.source, nil
}

// complete leaves out paths whose references are neither valid nor among infos: they
// have to wait for what the client will send.
func (s *serverSubstituter) complete(ctx context.Context, infos []*nix.PathInfo) ([]*nix.PathInfo, error) {
	known := make(map[nix.StorePath]bool)
	var others []nix.StorePath
	for _, info := range infos {
		known[info.Path] = true
		others = append(others, info.References...)
	}
	valid, err := s.local.store.ValidPaths(ctx, others)
	if err != nil {
		return nil, err
	}
	for _, p := range valid {
		known[p] = true
	}
	sorted, err := closure.Sort(infos)
	if err != nil {
		return nil, err
	}
	var whole []*nix.PathInfo
	for _, info := range sorted {
		complete := true
		for _, ref := range info.References {
			complete = complete && known[ref]
		}
		if complete {
			whole = append(whole, info)
		} else {
			known[info.Path] = false // and so are those that refer to it
		}
	}
	return whole, nil
}

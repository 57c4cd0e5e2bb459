package cli

import (
	"context"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixconf"
	"github.com/copy-closure/copy-closure/remote"
)

// Limits on what a client makes this machine ask its caches.
const (
	serverRequests     = 32     // at once
	serverMaxAsked     = 10_000 // paths for one question
	serverMaxAskedEver = 50_000 // paths in a session
)

// A serverSubstituter takes paths from the caches of this machine's configuration into
// the store that is served. A client may add those that trusted-substituters lists.
type serverSubstituter struct {
	*program
	local *localEnd

	mu     sync.Mutex
	named  []string // by the client
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

// Foresee implements remote.ForeseeingSubstituter. What a Nix here would fetch is not
// known.
func (s *serverSubstituter) Foresee(ctx context.Context, paths []nix.StorePath) (infos []*nix.PathInfo, download int64, err error) {
	if s.local.nix != nil {
		return nil, 0, nil
	}
	source, err := s.caches(ctx)
	if err != nil || source == nil {
		return nil, 0, err
	}
	hits, err := source.caches.Closure(ctx, paths, func(p nix.StorePath) bool { return source.isHere(ctx, p) })
	for _, hit := range hits {
		download += downloadSize(hit)
	}
	return source.remember(hits), download, err
}

// Search implements remote.SearchingSubstituter.
func (s *serverSubstituter) Search(ctx context.Context, paths []nix.StorePath) ([]remote.CachedPath, error) {
	source, err := s.caches(ctx)
	if err != nil || source == nil {
		return nil, err
	}
	hits, err := source.caches.Find(ctx, paths)
	source.remember(hits)
	cached := make([]remote.CachedPath, len(hits))
	for i, hit := range hits {
		cached[i] = remote.CachedPath{Path: hit.Path, NARHash: hit.NARHash, Download: downloadSize(hit), Cache: hit.Cache.Files.String()}
	}
	return cached, err
}

// Name implements remote.NamedSubstituter.
func (s *serverSubstituter) Name(addresses []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.named = addresses
}

// allowedCaches are those of the trusted caches that a client names, with or without
// the slash at the end.
func allowedCaches(named, trusted []string) []string {
	asked := make(map[string]bool, len(named))
	for _, address := range named {
		asked[strings.TrimSuffix(address, "/")] = true
	}
	return slices.DeleteFunc(slices.Clone(trusted), func(address string) bool {
		return !asked[strings.TrimSuffix(address, "/")]
	})
}

func (s *serverSubstituter) caches(ctx context.Context) (*cacheSource, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened {
		return s.source, nil
	}
	conf, err := nixconf.Load(os.LookupEnv)
	if err != nil {
		return nil, err
	}
	caches, err := s.openSubstituters(ctx, cacheRequest{checkSigs: true, further: allowedCaches(s.named, conf.TrustedSubstituters())})
	if err != nil {
		return nil, err
	}
	s.opened = true
	if caches != nil {
		caches.Concurrency, caches.MaxAsked, caches.MaxAskedEver = serverRequests, serverMaxAsked, serverMaxAskedEver
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

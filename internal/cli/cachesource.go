package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"sync"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixconf"
	"github.com/copy-closure/copy-closure/remote"
	"github.com/copy-closure/copy-closure/substitute"
)

// A cacheSource makes a closure.CacheSource of caches.
type cacheSource struct {
	caches *substitute.Substituters
	local  *localEnd // what is valid here is not asked for

	mu   sync.Mutex
	hits map[nix.StorePath]substitute.Hit // where each path is taken from
	used map[nix.StorePath]bool           // was requested from there
}

func newCacheSource(caches *substitute.Substituters, local *localEnd) *cacheSource {
	return &cacheSource{caches: caches, local: local,
		hits: make(map[nix.StorePath]substitute.Hit), used: make(map[nix.StorePath]bool)}
}

func (s *cacheSource) remember(hits []substitute.Hit) []*nix.PathInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	infos := make([]*nix.PathInfo, len(hits))
	for i, hit := range hits {
		s.hits[hit.Path] = hit
		infos[i] = &hit.PathInfo
	}
	return infos
}

// PathInfos implements closure.Source.
func (s *cacheSource) PathInfos(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error) {
	hits, err := s.caches.Find(ctx, paths)
	return s.remember(hits), err
}

// Closure implements closure.ClosureInfoSource. It ends at paths that are valid here,
// whose closures are asked of the store.
func (s *cacheSource) Closure(ctx context.Context, roots []nix.StorePath) ([]*nix.PathInfo, error) {
	var mu sync.Mutex
	var present []nix.StorePath
	isHere := func(p nix.StorePath) bool {
		if !s.isHere(ctx, p) {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		present = append(present, p)
		return true
	}
	hits, err := s.caches.Closure(ctx, roots, isHere)
	if err != nil {
		return nil, err
	}
	infos := s.remember(hits)
	if len(present) > 0 {
		here, err := s.local.closure(ctx, present)
		if err != nil {
			return nil, err
		}
		infos = append(infos, here...)
	}
	return infos, s.checkComplete(roots, infos)
}

// isHere reports whether p is known to be valid here.
func (s *cacheSource) isHere(ctx context.Context, p nix.StorePath) bool {
	valid, err := s.local.target.ValidPaths(ctx, []nix.StorePath{p}, false)
	return err == nil && len(valid) > 0
}

// checkComplete names a path that no cache has, with the reason if there is one.
func (s *cacheSource) checkComplete(roots []nix.StorePath, infos []*nix.PathInfo) error {
	known := make(map[nix.StorePath]bool, len(infos))
	for _, info := range infos {
		known[info.Path] = true
	}
	wanted := slices.Clone(roots)
	for _, info := range infos {
		wanted = append(wanted, info.References...)
	}
	for _, p := range wanted {
		if known[p] {
			continue
		}
		err := s.caches.Refusal(p)
		if errors.Is(err, nix.ErrNotTrusted) {
			return fmt.Errorf("%w; add the cache's key to trusted-public-keys, or say --trusted-public-key KEY or --no-check-sigs", err)
		}
		if err != nil {
			return err
		}
		if err := s.caches.Unusable(); err != nil {
			return fmt.Errorf("%s is in no cache that could be asked; %w", p, err)
		}
		return fmt.Errorf("%s: no cache has it: %w", p, nix.ErrNotValid)
	}
	return nil
}

// Offers implements closure.CacheSource.
func (s *cacheSource) Offers(ctx context.Context, infos []*nix.PathInfo) ([]closure.Offer, error) {
	var unknown []nix.StorePath
	for _, info := range infos {
		if _, known := s.hit(info.Path); !known {
			unknown = append(unknown, info.Path)
		}
	}
	if _, err := s.PathInfos(ctx, unknown); err != nil {
		return nil, err
	}
	var offers []closure.Offer
	for _, info := range infos {
		hit, ok := s.hit(info.Path)
		if ok && hit.NARHash == info.NARHash && hit.NARSize == info.NARSize && slices.Equal(hit.References, info.References) {
			offers = append(offers, closure.Offer{Info: signedBoth(info, hit), Cache: hit.Cache.Files.String(), Download: downloadSize(hit)})
		}
	}
	return offers, nil
}

// signedBoth returns info with the signatures of the cache, too.
func signedBoth(info *nix.PathInfo, hit substitute.Hit) *nix.PathInfo {
	both := *info
	both.Signatures = nix.MergeSignatures(info.Signatures, hit.Signatures)
	return &both
}

// downloadSize is that of the NAR where the cache does not say.
func downloadSize(hit substitute.Hit) int64 {
	if hit.FileSize > 0 {
		return hit.FileSize
	}
	return hit.NARSize
}

func (s *cacheSource) hit(p nix.StorePath) (substitute.Hit, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	hit, ok := s.hits[p]
	return hit, ok
}

// open opens a NAR, from another cache than before if it was asked for already, and
// from yet another if that has not got it any more.
func (s *cacheSource) open(ctx context.Context, p nix.StorePath) (io.ReadCloser, error) {
	s.mu.Lock()
	hit, ok := s.hits[p]
	again := s.used[p]
	s.used[p] = true
	s.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("%s: %w", p, closure.ErrNowhereElse)
	}
	err := closure.ErrNowhereElse
	if !again {
		var nar io.ReadCloser
		if nar, err = hit.Cache.Open(ctx, hit.NARInfo); err == nil {
			return nar, nil
		}
	}
	for ctx.Err() == nil {
		if hit, ok = s.caches.Instead(ctx, hit); !ok {
			return nil, nowhereElse(p, err)
		}
		s.remember([]substitute.Hit{hit})
		var nar io.ReadCloser
		if nar, err = hit.Cache.Open(ctx, hit.NARInfo); err == nil {
			return nar, nil
		}
	}
	return nil, context.Cause(ctx)
}

// nowhereElse keeps the reason why the last cache was of no use.
func nowhereElse(p nix.StorePath, reason error) error {
	if reason == closure.ErrNowhereElse {
		return fmt.Errorf("%s: %w", p, reason)
	}
	return fmt.Errorf("%w; %w", reason, closure.ErrNowhereElse)
}

// cachesFor returns the caches that say which paths need not be sent. A pull takes the
// paths from them; for a push they are what the far end is said to reach, and nothing
// here depends on what they say. It is nil where there are none, or where the store that
// is written to asks caches itself.
func (r *copyRun) cachesFor(ctx context.Context, e ends) (*cacheSource, error) {
	if !r.terms.Substitute {
		return nil, nil
	}
	q := r.caches
	_, itself := e.target.(closure.SubstitutingTarget)
	if target, ok := e.target.(daemonTarget); ok && len(q.further)+len(q.keys) > 0 {
		return nil, r.nameCaches(ctx, target.daemon, q, !r.pull && !e.far.conn.Login().Verified)
	}
	switch {
	case !r.pull && (len(q.further) == 0 || r.host.worker || r.prefer == closure.PreferPush):
		return nil, nil
	case !r.pull:
		q.only, q.further, q.checkSigs = q.further, nil, false
	case itself:
		if len(q.further)+len(q.keys) > 0 {
			r.log.Warn("the Nix that is here takes from the caches of its configuration; --substituter and --trusted-public-key have no effect on it")
		}
		return nil, nil
	}
	caches, err := r.openSubstituters(ctx, q)
	if err != nil {
		return nil, err
	}
	if caches == nil {
		r.log.Warn("--use-substitutes has no effect here: no cache is configured; say --substituter URL, or set substituters in nix.conf")
		return nil, nil
	}
	return newCacheSource(caches, e.local), nil
}

// nameCaches tells a daemon which further caches to take from, as far as it lets this
// user say that. A daemon on a host that is not verified learns of none with a password.
func (r *copyRun) nameCaches(ctx context.Context, daemon *remote.Daemon, q cacheRequest, unverified bool) error {
	conf, err := nixconf.Load(os.LookupEnv)
	if err != nil {
		return err
	}
	further, own := q.further, conf.Substituters()
	if unverified {
		further, own = r.withoutPasswords(further), r.withoutPasswords(own)
	}
	refused, err := daemon.UseCaches(ctx, remote.Caches{Further: further, Keys: q.keys, Own: own})
	for _, text := range refused {
		r.log.Warn("the Nix daemon "+r.daemonPlace()+" does not take --substituter or --trusted-public-key from this user; have them in trusted-substituters and trusted-public-keys there, or the user in trusted-users", "it says", text)
	}
	return err
}

// withoutPasswords leaves out the caches whose addresses hold a password.
func (r *copyRun) withoutPasswords(addresses []string) []string {
	var open []string
	for _, address := range addresses {
		if u, err := url.Parse(address); err == nil && u.User == nil {
			open = append(open, address)
			continue
		}
		r.log.Warn("the far end is not told of a cache whose address may hold a password: its host key was not verified")
	}
	return open
}

// A farSubstituter is a session of its own in which the far end substitutes, opened when
// it is needed.
type farSubstituter struct {
	run   *copyRun
	far   *farEnd
	store *remote.Store
}

// open opens the session if there is none.
func (s *farSubstituter) open(ctx context.Context) error {
	if s.store != nil {
		return nil
	}
	end := s.far.end
	end.Access = remote.Write
	store, err := remote.Open(ctx, s.far.farHost, end, remote.Options{StoreDir: storeDir(), Logger: s.run.log})
	if err != nil {
		return err
	}
	s.store = store
	s.far.further = append(s.far.further, store)
	return nil
}

// Substitute implements closure.SubstitutingTarget.
func (s *farSubstituter) Substitute(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error) {
	if err := s.open(ctx); err != nil {
		return nil, err
	}
	return s.store.ValidPaths(ctx, paths, true, true)
}

// openThere prepares a push in which the far end substitutes. Where it has said itself
// what its caches have and takes no further session for that, it substitutes here and
// now, in the first, and plan is what is left.
func (r *copyRun) openThere(ctx context.Context, plan *closure.Plan, e ends, caches *cacheSource) (*farSubstituter, error) {
	there := &farSubstituter{run: r, far: e.far}
	if r.pull || caches != nil || len(plan.Fetch) == 0 {
		return there, nil
	}
	err := there.open(ctx)
	if err == nil {
		return there, nil
	}
	r.log.Info("the far end takes no further session, it substitutes first", "reason", err)
	paths := make([]nix.StorePath, len(plan.Fetch))
	for i, offer := range plan.Fetch {
		paths[i] = offer.Info.Path
	}
	valid, err := e.far.ValidPaths(ctx, paths, true, true)
	if err != nil {
		return nil, err
	}
	came := new(arrivals)
	for _, p := range valid {
		came.add(p, true)
	}
	came.correct(plan, true)
	plan.Send, err = closure.Sort(plan.Send)
	return there, err
}

// arrivals are the paths that came from caches.
type arrivals struct {
	mu    sync.Mutex
	paths map[nix.StorePath]bool
}

func (a *arrivals) add(p nix.StorePath, fetched bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.paths == nil {
		a.paths = make(map[nix.StorePath]bool)
	}
	a.paths[p] = fetched
}

// correct moves what a plan would fetch to where it has come from in fact; there says
// that the far end has fetched.
func (a *arrivals) correct(plan *closure.Plan, there bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	offers := plan.Fetch
	plan.Fetch = nil
	for _, offer := range offers {
		switch {
		case !a.paths[offer.Info.Path]:
			plan.Send = append(plan.Send, offer.Info)
		case there:
			plan.Substitute = append(plan.Substitute, offer.Info.Path)
		default:
			plan.Fetch = append(plan.Fetch, offer)
		}
	}
}

const (
	// maxOpen is how many downloads of a lane are under way, so that each need not wait
	// for the answer to its request.
	maxOpen = 16
	// cacheLookahead is how many bytes of NARs are requested ahead in a lane.
	cacheLookahead = 4 << 20
	// cacheLanes is how many NARs are decompressed and unpacked side by side.
	cacheLanes = 4
)

// OpenLane implements closure.Source.
func (s *cacheSource) OpenLane(context.Context) (closure.SourceLane, error) {
	return &cacheLane{source: s, slots: make(chan struct{}, maxOpen), requested: make(chan *cacheNAR, maxOpen)}, nil
}

// A cacheLane is a row of downloads.
type cacheLane struct {
	source    *cacheSource
	slots     chan struct{}
	requested chan *cacheNAR
}

// Request implements closure.SourceLane.
func (l *cacheLane) Request(ctx context.Context, info *nix.PathInfo) error {
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	n := &cacheNAR{ctx: ctx, lane: l, path: info.Path, opened: make(chan struct{})}
	go func() {
		defer close(n.opened)
		n.body, n.err = l.source.open(ctx, info.Path)
	}()
	l.requested <- n
	return nil
}

// Next implements closure.SourceLane.
func (l *cacheLane) Next(ctx context.Context) (closure.NAR, error) {
	select {
	case n := <-l.requested:
		return n, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Lookahead implements closure.SourceLane.
func (l *cacheLane) Lookahead() int64 { return cacheLookahead }

// Abort implements closure.SourceLane: the context of the requests ends them.
func (l *cacheLane) Abort() {}

// A cacheNAR is a download that has begun. If it breaks off for good, it goes on from
// another cache.
type cacheNAR struct {
	ctx    context.Context
	lane   *cacheLane
	path   nix.StorePath
	offset int64         // bytes that were read
	opened chan struct{} // closed when the following are set
	body   io.ReadCloser
	err    error
}

// Reader implements closure.NAR.
func (n *cacheNAR) Reader() io.Reader { return n }

func (n *cacheNAR) Read(p []byte) (int, error) {
	<-n.opened
	for n.err == nil {
		got, err := n.body.Read(p)
		n.offset += int64(got)
		switch {
		case err == io.EOF:
			return got, err
		case got > 0 || err == nil:
			return got, nil // what broke is met again
		case errors.Is(err, nix.ErrDamaged) || n.ctx.Err() != nil:
			n.err = err // what was read may be wrong, too
		default:
			n.err = n.goOn(err)
		}
	}
	return 0, n.err
}

// goOn takes the rest of the NAR from another cache.
func (n *cacheNAR) goOn(reason error) error {
	n.body.Close()
	body, err := n.lane.source.open(n.ctx, n.path)
	if err != nil {
		n.body = nil
		return fmt.Errorf("%w; %w", reason, err)
	}
	n.body = body
	_, err = io.CopyN(io.Discard, body, n.offset)
	return err
}

// WriteTo implements closure.NAR.
func (n *cacheNAR) WriteTo(w io.Writer) (int64, error) {
	return io.CopyBuffer(w, struct{ io.Reader }{n}, make([]byte, 128<<10))
}

// Close implements closure.NAR.
func (n *cacheNAR) Close() error {
	<-n.opened
	<-n.lane.slots
	body := n.body
	if body == nil {
		return nil
	}
	n.body = nil // a decompressor's window is large, and we may be kept until the path is valid
	return body.Close()
}

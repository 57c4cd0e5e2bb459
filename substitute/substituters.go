package substitute

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// Substituters are several caches, asked in the order of their priorities. Methods may
// be called concurrently.
type Substituters struct {
	Caches []*Cache
	Memory *Memory      // of earlier answers; nil: none
	Logger *slog.Logger // nil discards

	// Concurrency is how many requests for narinfos are under way at once; 0 for what was
	// found best.
	Concurrency int
	// MaxAsked is about how many paths one call asks, and MaxAskedEver all calls together;
	// 0: no limit. Paths beyond that are passed over, with a warning.
	MaxAsked, MaxAskedEver int

	begin sync.Once
	order []*Cache

	remembered atomic.Bool // an answer came from the memory

	mu      sync.Mutex
	given   map[*Cache]error        // up, and why: mostly they could not be reached
	refused map[nix.StorePath]error // the first reason not to use what a cache has
	asked   int                     // paths, by all calls
}

// A Hit is a path in a cache.
type Hit struct {
	*NARInfo
	Cache      *Cache
	remembered bool // the answer is from an earlier run
}

// Find returns those of paths that a cache has, in no particular order: each from the
// first cache whose answer can be used. A cache that cannot be reached is given up,
// with a warning, and the others go on. The error is that of ctx.
func (s *Substituters) Find(ctx context.Context, paths []nix.StorePath) ([]Hit, error) {
	return s.search(ctx, paths, func(Hit) []nix.StorePath { return nil })
}

// Closure returns paths and all that they refer to, as far as caches have them, and
// asks for references as soon as they are known. Paths of which present is true are
// left out with their references; it may be called concurrently.
func (s *Substituters) Closure(ctx context.Context, paths []nix.StorePath, present func(nix.StorePath) bool) ([]Hit, error) {
	w := walk{seen: make(map[nix.StorePath]bool), present: present}
	return s.search(ctx, w.unseen(paths), func(h Hit) []nix.StorePath { return w.unseen(h.References) })
}

// A walk keeps the paths that were asked for.
type walk struct {
	present func(nix.StorePath) bool
	mu      sync.Mutex
	seen    map[nix.StorePath]bool
}

func (w *walk) unseen(paths []nix.StorePath) []nix.StorePath {
	w.mu.Lock()
	defer w.mu.Unlock()
	var fresh []nix.StorePath
	for _, p := range paths {
		if !w.seen[p] {
			w.seen[p] = true
			if !w.present(p) {
				fresh = append(fresh, p)
			}
		}
	}
	return fresh
}

// search asks for paths, many at once, and for those that next returns for each hit.
// The error is that of ctx, or wraps nix.ErrClosureTooLarge.
func (s *Substituters) search(ctx context.Context, paths []nix.StorePath, next func(Hit) []nix.StorePath) ([]Hit, error) {
	if len(paths) == 0 {
		return nil, nil
	}
	s.start(ctx)
	asked := 0
	q := newQueue(s.admit(&asked, paths))
	stop := context.AfterFunc(ctx, q.close)
	defer stop()
	var hits []Hit
	var budget nix.ClosureBudget
	var tooLarge error
	var mu sync.Mutex
	var workers sync.WaitGroup
	found := func(hit Hit, further []nix.StorePath) {
		mu.Lock()
		defer mu.Unlock()
		err := budget.Add(hit.MemorySize())
		if asked+len(further) > nix.MaxClosurePaths { // most of them are still to be asked about
			err = fmt.Errorf("%w: it has more than %d paths", nix.ErrClosureTooLarge, nix.MaxClosurePaths)
		}
		if err != nil {
			tooLarge = err
			q.close()
			return
		}
		hits = append(hits, hit)
		q.add(s.admit(&asked, further))
	}
	for range cmp.Or(s.Concurrency, webRequests) {
		workers.Go(func() {
			for p, ok := q.take(); ok; p, ok = q.take() {
				if hit, err := s.find(ctx, p); err == nil {
					found(hit, next(hit))
				}
				q.done()
			}
		})
	}
	workers.Wait()
	if tooLarge != nil {
		return nil, fmt.Errorf("ask the caches: %w", tooLarge)
	}
	s.Memory.save(hits)
	return hits, context.Cause(ctx)
}

// admit returns those of paths that may still be asked about. The caller of search
// counts in asked.
func (s *Substituters) admit(asked *int, paths []nix.StorePath) []nix.StorePath {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(paths)
	if s.MaxAsked > 0 {
		n = min(n, s.MaxAsked-*asked)
	}
	if s.MaxAskedEver > 0 {
		n = min(n, s.MaxAskedEver-s.asked)
	}
	if n < len(paths) {
		s.Logger.Warn("too many paths to ask the caches about", "not asked", len(paths)-n)
	}
	*asked += n
	s.asked += n
	return paths[:n]
}

// start asks all caches at once what they are.
func (s *Substituters) start(ctx context.Context) {
	s.begin.Do(func() {
		if s.Logger == nil {
			s.Logger = slog.New(slog.DiscardHandler)
		}
		s.given, s.refused = make(map[*Cache]error), make(map[nix.StorePath]error)
		var asking sync.WaitGroup
		for _, c := range s.Caches {
			asking.Go(func() {
				if _, err := c.Info(ctx); err != nil {
					s.giveUp(ctx, c, err)
				}
			})
		}
		asking.Wait()
		s.order = slices.Clone(s.Caches)
		slices.SortStableFunc(s.order, func(a, b *Cache) int { return cmp.Compare(a.info.Priority, b.info.Priority) })
	})
}

// giveUp says once that a cache is of no use.
func (s *Substituters) giveUp(ctx context.Context, c *Cache, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.given[c] != nil || ctx.Err() != nil {
		return
	}
	s.given[c] = err
	s.Logger.Warn("going on without a cache", "cache", c.Files, "because", err)
}

func (s *Substituters) usable(c *Cache) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.given[c] == nil
}

// find asks the caches for p, one after the other.
func (s *Substituters) find(ctx context.Context, p nix.StorePath) (Hit, error) {
	for _, c := range s.order {
		if !s.usable(c) {
			continue
		}
		if n := s.Memory.recall(c, p); n != nil {
			s.remembered.Store(true)
			return Hit{NARInfo: n, Cache: c, remembered: true}, nil
		}
		if n := s.ask(ctx, c, p); n != nil {
			return Hit{NARInfo: n, Cache: c}, nil
		}
	}
	return Hit{}, fs.ErrNotExist
}

// ask returns nil where c is of no use for p.
func (s *Substituters) ask(ctx context.Context, c *Cache, p nix.StorePath) *NARInfo {
	if !s.usable(c) || ctx.Err() != nil {
		return nil
	}
	n, err := c.NARInfo(ctx, p)
	var refused *RefusedError
	switch {
	case err == nil:
		return n
	case errors.Is(err, fs.ErrNotExist):
	case errors.As(err, &refused):
		s.refuse(p, err)
	default:
		s.giveUp(ctx, c, err)
	}
	return nil
}

func (s *Substituters) refuse(p nix.StorePath, err error) {
	s.Logger.Info("a cache is not believed", "reason", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refused[p] == nil {
		s.refused[p] = err
	}
}

// Remembered reports whether an answer was that of an earlier run, so that the cache may
// have something else by now.
func (s *Substituters) Remembered() bool { return s.remembered.Load() }

// Refusal returns why what a cache has of p was not used, or nil.
func (s *Substituters) Refusal(p nix.StorePath) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused[p]
}

// An UnusableError says that a cache could not be asked, so that what it has is not known.
type UnusableError struct {
	Cache string
	Err   error
}

func (e *UnusableError) Error() string { return fmt.Sprintf("cache %s: %v", e.Cache, e.Err) }
func (e *UnusableError) Unwrap() error { return e.Err }

// Unusable returns an *UnusableError for the first of the caches that were given up, or
// nil.
func (s *Substituters) Unusable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.Caches {
		if err := s.given[c]; err != nil {
			return &UnusableError{c.Files.String(), err}
		}
	}
	return nil
}

// Instead returns where else the very NAR of h can be had, after it could not be read
// there. An answer of an earlier run is asked for again first: the file may have got
// another name since.
func (s *Substituters) Instead(ctx context.Context, h Hit) (Hit, bool) {
	if h.remembered {
		s.Memory.forget(h.Cache)
		n := s.ask(ctx, h.Cache, h.Path)
		if n != nil && n.URL != h.URL && sameNAR(n, h.NARInfo) {
			return Hit{NARInfo: n, Cache: h.Cache}, true
		}
	}
	for _, c := range s.order[slices.Index(s.order, h.Cache)+1:] {
		if n := s.ask(ctx, c, h.Path); n != nil && sameNAR(n, h.NARInfo) {
			return Hit{NARInfo: n, Cache: c}, true
		}
	}
	return Hit{}, false
}

func sameNAR(a, b *NARInfo) bool {
	return a.NARHash == b.NARHash && a.NARSize == b.NARSize && slices.Equal(a.References, b.References)
}

// A queue of paths ends when all have been dealt with and none was added.
type queue struct {
	mu      sync.Mutex
	changed *sync.Cond
	paths   []nix.StorePath
	open    int // taken or waiting
}

func newQueue(paths []nix.StorePath) *queue {
	q := &queue{paths: slices.Clone(paths), open: len(paths)}
	q.changed = sync.NewCond(&q.mu)
	return q
}

// take waits for a path; there is none any more if ok is false.
func (q *queue) take() (p nix.StorePath, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.paths) == 0 && q.open > 0 {
		q.changed.Wait()
	}
	if q.open <= 0 {
		return p, false
	}
	p = q.paths[0]
	q.paths = q.paths[1:]
	return p, true
}

func (q *queue) add(paths []nix.StorePath) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.open > 0 {
		q.paths = append(q.paths, paths...)
		q.open += len(paths)
		q.changed.Broadcast()
	}
}

// done says that a path that was taken has been dealt with.
func (q *queue) done() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.open--
	if q.open <= 0 {
		q.changed.Broadcast()
	}
}

// close ends the queue early.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.open = 0
	q.changed.Broadcast()
}

package closure_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/internal/progress"
)

// caches are a closure.CacheSource of two stores: what the first one fails to deliver
// comes from the second.
type caches struct {
	memorySource
	second *nixtest.Store // nil: there is none

	mu        sync.Mutex
	requested map[nix.StorePath]int
}

func newCaches(first, second *nixtest.Store) *caches {
	return &caches{memorySource: memorySource{first}, second: second, requested: make(map[nix.StorePath]int)}
}

func (s *caches) Offers(ctx context.Context, infos []*nix.PathInfo) ([]closure.Offer, error) {
	var offers []closure.Offer
	for _, info := range infos {
		if valid, _ := s.ValidPaths(ctx, []nix.StorePath{info.Path}); len(valid) > 0 {
			offers = append(offers, closure.Offer{Info: info, Cache: "first", Download: info.NARSize / 2})
		}
	}
	return offers, nil
}

func (s *caches) OpenLane(context.Context) (closure.SourceLane, error) {
	return &cachesLane{s, make(chan *nix.PathInfo, 1000)}, nil
}

type cachesLane struct {
	*caches
	queue chan *nix.PathInfo
}

func (l *cachesLane) Request(_ context.Context, info *nix.PathInfo) error {
	l.queue <- info
	return nil
}

func (l *cachesLane) Next(ctx context.Context) (closure.NAR, error) {
	info := <-l.queue
	l.mu.Lock()
	l.requested[info.Path]++
	from := l.Store
	if l.requested[info.Path] > 1 {
		from = l.second
	}
	l.mu.Unlock()
	if from == nil {
		return readerNAR{iotest.ErrReader(closure.ErrNowhereElse)}, nil
	}
	var content bytes.Buffer
	if err := from.WriteNAR(ctx, &content, info.Path); err != nil {
		return readerNAR{iotest.ErrReader(err)}, nil
	}
	return readerNAR{&content}, nil
}

func (l *cachesLane) Lookahead() int64 { return 1 << 10 }
func (l *cachesLane) Abort()           {}

// A readerNAR is a NAR as a stream.
type readerNAR struct{ r io.Reader }

func (n readerNAR) Reader() io.Reader                  { return n.r }
func (n readerNAR) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, n.r) }
func (n readerNAR) Close() error                       { return nil }

// A streamSource is a source whose NARs are streams.
type streamSource struct{ *caches }

// A tolerantTarget keeps paths until their references are valid.
type tolerantTarget struct {
	*nixtest.Store
	mu     sync.Mutex
	queued []func() bool // registers the path and reports true, if it can
}

func (t *tolerantTarget) ValidPaths(ctx context.Context, paths []nix.StorePath, lock bool) ([]nix.StorePath, error) {
	return t.Store.ValidPaths(ctx, paths)
}

func (t *tolerantTarget) AnyOrder() bool                                       { return true }
func (t *tolerantTarget) ToleratesBrokenNARs()                                 {}
func (t *tolerantTarget) OpenLane(context.Context) (closure.TargetLane, error) { return t, nil }
func (t *tolerantTarget) Abort()                                               {}
func (t *tolerantTarget) Finish(ctx context.Context) error                     { return t.Flush(ctx) }
func (t *tolerantTarget) Add(ctx context.Context, info *nix.PathInfo, nar closure.NAR, done func(error)) error {
	content := make([]byte, info.NARSize)
	if _, err := io.ReadFull(nar.Reader(), content); err != nil {
		err = fmt.Errorf("read NAR: %w", err)
		done(err)
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queued = append(t.queued, func() bool {
		others := slices.DeleteFunc(slices.Clone(info.References), func(p nix.StorePath) bool { return p == info.Path })
		if valid, _ := t.Store.ValidPaths(ctx, others); len(valid) < len(others) {
			return false
		}
		im, _ := t.Store.Import(ctx)
		im.Add(ctx, info, bytes.NewReader(content), done)
		im.Flush(ctx)
		return true
	})
	return nil
}

func (t *tolerantTarget) Flush(context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for n := -1; n != len(t.queued); {
		n = len(t.queued)
		t.queued = slices.DeleteFunc(t.queued, func(register func() bool) bool { return register() })
	}
	return nil
}

func TestFetch(t *testing.T) {
	c := nixtest.Random(7, 200)
	damaged := func(paths int) *nixtest.Store {
		store := nixtest.NewStore(c[:paths]...)
		for i := 0; i < paths; i += 3 {
			store.Damage(c[i].Info.Path, 130)
		}
		return store
	}
	whole := nixtest.NewStore(c...)
	cases := []struct {
		name   string
		source closure.Source // nil: caches only
		caches *caches
		want   error
	}{
		{"all from caches", nil, newCaches(whole, nil), nil},
		{"part from caches", streamSource{newCaches(whole, nil)}, newCaches(nixtest.NewStore(c[:150]...), nil), nil},
		{"damaged in the first", nil, newCaches(damaged(200), whole), nil},
		{"damaged in all caches", streamSource{newCaches(whole, nil)}, newCaches(damaged(150), damaged(150)), nil},
		{"damaged everywhere", streamSource{newCaches(damaged(200), nil)}, newCaches(damaged(150), nil), nix.ErrDamaged},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			target := &tolerantTarget{Store: nixtest.NewStore()}
			var from closure.Source = test.source
			if from == nil {
				from = test.caches
			}
			all, err := closure.Walk(t.Context(), memorySource{whole}, c.Paths())
			if err != nil {
				t.Fatal(err)
			}
			plan, err := closure.Negotiate(t.Context(), all, from, target, closure.Terms{Caches: test.caches})
			if err != nil {
				t.Fatal(err)
			}
			meter := new(progress.Meter)
			err = closure.Copy(t.Context(), plan, test.source, target, closure.CopyOptions{
				Lanes: 2, Caches: test.caches, CacheLanes: 3, Meter: meter,
			})
			if test.want != nil {
				if !errors.Is(err, test.want) {
					t.Errorf("got %v, want %v", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := target.Verify(); err != nil {
				t.Error(err)
			}
			if got := len(target.All()); got != len(all.Paths) {
				t.Errorf("%d paths arrived of %d", got, len(all.Paths))
			}
			if s := meter.State(); s.DoneBytes != s.TotalBytes || s.DonePaths != s.TotalPaths {
				t.Errorf("meter ends with %+v", s)
			}
		})
	}
}

// A substitutingTarget is a strictTarget that has caches of its own.
type substitutingTarget struct {
	*strictTarget
	caches map[nix.StorePath]nixtest.Object // those that are there in fact
	asked  [][]nix.StorePath
	fail   error
}

func (t *substitutingTarget) Substitute(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error) {
	t.asked = append(t.asked, paths)
	if t.fail != nil {
		return nil, t.fail
	}
	var valid []nix.StorePath
	for _, p := range paths {
		o, ok := t.caches[p]
		if ok && t.register(ctx, o.Info, o.NAR) == nil {
			valid = append(valid, p)
		}
	}
	return valid, nil
}

func TestSubstitutionThere(t *testing.T) {
	c := nixtest.Random(9, 300)
	whole := nixtest.NewStore(c...)
	cases := []struct {
		name   string
		there  int // of the 200 paths that are offered
		prefer closure.Preference
		fail   error
	}{
		{name: "all", there: 200},
		{name: "some", there: 100},
		{name: "none"},
		{name: "all, and preferred", there: 200, prefer: closure.PreferSubstitute},
		{name: "some, and preferred", there: 50, prefer: closure.PreferSubstitute},
		{name: "pushing preferred", there: 200, prefer: closure.PreferPush},
		{name: "broken", there: 200, fail: errors.New("session lost")},
	}
	for _, test := range cases {
		for _, lanes := range []int{1, 4} {
			t.Run(fmt.Sprintf("%s in %d lanes", test.name, lanes), func(t *testing.T) {
				target := &substitutingTarget{strictTarget: &strictTarget{Store: nixtest.NewStore()}, fail: test.fail}
				target.caches = make(map[nix.StorePath]nixtest.Object)
				for _, o := range c[:test.there] {
					target.caches[o.Info.Path] = o
				}
				source := memorySource{whole}
				all, err := closure.Walk(t.Context(), source, c.Paths())
				if err != nil {
					t.Fatal(err)
				}
				offers := newCaches(nixtest.NewStore(c[:200]...), nil)
				plan, err := closure.Negotiate(t.Context(), all, source, target, closure.Terms{Caches: offers, Substitute: true})
				if err != nil {
					t.Fatal(err)
				}
				if len(plan.Fetch) != 200 || len(plan.Send) != 100 {
					t.Fatalf("plan fetches %d and sends %d", len(plan.Fetch), len(plan.Send))
				}
				var mu sync.Mutex
				fetched := 0
				err = closure.Copy(t.Context(), plan, source, target, closure.CopyOptions{
					Lanes: lanes, There: target, Prefer: test.prefer,
					Arrived: func(_ nix.StorePath, there bool) {
						mu.Lock()
						defer mu.Unlock()
						if there {
							fetched++
						}
					},
				})
				if err != nil {
					t.Fatal(err)
				}
				if err := target.Verify(); err != nil {
					t.Error(err)
				}
				if n := len(target.All()); n != len(c) {
					t.Errorf("%d paths arrived of %d", n, len(c))
				}
				if test.prefer == closure.PreferSubstitute && fetched != test.there || test.prefer == closure.PreferPush && fetched > 0 {
					t.Errorf("%d paths were substituted", fetched)
				}
			})
		}
	}
}

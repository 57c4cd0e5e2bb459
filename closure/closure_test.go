package closure_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/internal/progress"
)

// A memorySource makes a closure.Source of a store in memory.
type memorySource struct{ *nixtest.Store }

func (s memorySource) OpenLane(context.Context) (closure.SourceLane, error) {
	return closure.DirectLane(s.Store), nil
}

// A plainSource can answer nothing but PathInfos.
type plainSource struct {
	closure.Source
	questions int
}

func (s *plainSource) PathInfos(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error) {
	s.questions++
	return s.Source.PathInfos(ctx, paths)
}

// A strictTarget registers a path when it comes, as Nix does: its references must
// be valid by then. Each lane has a queue of its own, so that one may run behind.
type strictTarget struct {
	*nixtest.Store
	mu     sync.Mutex
	lanes  int
	most   int // lanes that can be opened; 0: any number
	locked []bool
	fail   nix.StorePath // refused when it comes

	verifies bool
	came     []nix.StorePath // as a whole
}

func (t *strictTarget) VerifiesNARs() bool { return t.verifies }

func (t *strictTarget) ValidPaths(ctx context.Context, paths []nix.StorePath, lock bool) ([]nix.StorePath, error) {
	t.locked = append(t.locked, lock)
	return t.Store.ValidPaths(ctx, paths)
}

func (t *strictTarget) AnyOrder() bool { return false }

var errNoMore = errors.New("no more sessions")

func (t *strictTarget) OpenLane(ctx context.Context) (closure.TargetLane, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.most > 0 && t.lanes == t.most {
		return nil, errNoMore
	}
	t.lanes++
	l := &strictLane{t: t, queue: make(chan func(), 1000)}
	go func() {
		for register := range l.queue {
			register()
		}
	}()
	return l, nil
}

type strictLane struct {
	t     *strictTarget
	queue chan func()
}

func (l *strictLane) Add(ctx context.Context, info *nix.PathInfo, nar closure.NAR, done func(error)) error {
	var content bytes.Buffer
	if _, err := nar.WriteTo(&content); err != nil {
		done(err)
		return err
	}
	l.queue <- func() { done(l.t.register(ctx, info, content.Bytes())) }
	return nil
}

func (l *strictLane) Flush(context.Context) error { return nil }
func (l *strictLane) Abort()                      {}

func (t *strictTarget) register(ctx context.Context, info *nix.PathInfo, content []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.came = append(t.came, info.Path)
	if info.Path == t.fail {
		return fmt.Errorf("%s: %w", info.Path, nix.ErrNotTrusted)
	}
	im, err := t.Store.Import(ctx)
	if err != nil {
		return err
	}
	result := make(chan error, 1)
	if err := im.Add(ctx, info, bytes.NewReader(content), func(err error) { result <- err }); err != nil {
		return err
	}
	if err := im.Flush(ctx); err != nil {
		return err
	}
	return <-result
}

func push(t *testing.T, c nixtest.Closure, target *strictTarget, terms closure.Terms, o closure.CopyOptions) (*closure.Plan, error) {
	t.Helper()
	source := memorySource{nixtest.NewStore(c...)}
	all, err := closure.Walk(t.Context(), source, []nix.StorePath{c.Top()})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := closure.Negotiate(t.Context(), all, source, target, terms)
	if err != nil {
		t.Fatal(err)
	}
	return plan, closure.Copy(t.Context(), plan, source, target, o)
}

func TestCopy(t *testing.T) {
	closures := map[string]nixtest.Closure{
		"one":     nixtest.Chain(1),
		"chain":   nixtest.Chain(60),
		"diamond": nixtest.Diamond(),
		"random":  nixtest.Random(7, 300),
	}
	for name, c := range closures {
		for _, lanes := range []int{0, 1, 2, 7} {
			t.Run(fmt.Sprintf("%s in %d lanes", name, lanes), func(t *testing.T) {
				target := &strictTarget{Store: nixtest.NewStore()}
				meter := new(progress.Meter)
				plan, err := push(t, c, target, closure.Terms{}, closure.CopyOptions{Lanes: lanes, Meter: meter})
				if err != nil {
					t.Fatal(err)
				}
				if err := target.Verify(); err != nil {
					t.Error(err)
				}
				if got := len(target.All()); got != len(plan.Send) {
					t.Errorf("%d paths arrived of %d", got, len(plan.Send))
				}
				s := meter.State()
				if s.DonePaths != s.TotalPaths || s.DoneBytes != s.TotalBytes || s.DoneBytes != plan.SendBytes() || len(s.Active) > 0 {
					t.Errorf("meter ends with %+v, plan has %d bytes", s, plan.SendBytes())
				}
			})
		}
	}
}

// TestFewerLanes copies although only some of the lanes can be had.
func TestFewerLanes(t *testing.T) {
	c := nixtest.Random(3, 50)
	target := &strictTarget{Store: nixtest.NewStore(), most: 1}
	if _, err := push(t, c, target, closure.Terms{}, closure.CopyOptions{Lanes: 4}); err != nil {
		t.Fatal(err)
	}
	target = &strictTarget{Store: nixtest.NewStore(), most: 1, lanes: 1}
	if _, err := push(t, c, target, closure.Terms{}, closure.CopyOptions{Lanes: 4}); !errors.Is(err, errNoMore) {
		t.Errorf("without any lane: %v, want %v", err, errNoMore)
	}
}

func TestRefusedPath(t *testing.T) {
	c := nixtest.Chain(20)
	target := &strictTarget{Store: nixtest.NewStore(), fail: c[10].Info.Path}
	_, err := push(t, c, target, closure.Terms{}, closure.CopyOptions{Lanes: 3})
	if !errors.Is(err, nix.ErrNotTrusted) || !strings.Contains(err.Error(), c[10].Info.Path.String()) {
		t.Errorf("error %v, want one that names the refused path", err)
	}
	if got := len(target.All()); got != 10 {
		t.Errorf("%d paths are valid, want the 10 before the refused one", got)
	}
	plan, err := push(t, c, &strictTarget{Store: target.Store}, closure.Terms{}, closure.CopyOptions{})
	if err != nil || len(plan.Send) != 10 {
		t.Errorf("retry sends %d paths, error %v; want the 10 that were missing", len(plan.Send), err)
	}
}

// A damaged NAR is found here, or by a target that hashes NARs itself.
func TestDamagedSource(t *testing.T) {
	for _, verifies := range []bool{false, true} {
		c := nixtest.Chain(3)
		store := nixtest.NewStore(c...)
		damaged := c[1].Info.Path
		store.Damage(damaged, 130)
		source := memorySource{store}
		target := &strictTarget{Store: nixtest.NewStore(), verifies: verifies}
		all, err := closure.Walk(t.Context(), source, []nix.StorePath{c.Top()})
		if err != nil {
			t.Fatal(err)
		}
		plan, err := closure.Negotiate(t.Context(), all, source, target, closure.Terms{})
		if err != nil {
			t.Fatal(err)
		}
		err = closure.Copy(t.Context(), plan, source, target, closure.CopyOptions{})
		if !errors.Is(err, nix.ErrDamaged) || !verifies && !strings.Contains(err.Error(), damaged.String()) {
			t.Errorf("verifies %v: error %v, want one that names the damaged path", verifies, err)
		}
		target.mu.Lock()
		if got := slices.Contains(target.came, damaged); got != verifies {
			t.Errorf("verifies %v: the damaged path came: %v", verifies, got)
		}
		target.mu.Unlock()
	}
}

func TestCancel(t *testing.T) {
	c := nixtest.Random(5, 40)
	source := memorySource{nixtest.NewStore(c...)}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	all, err := closure.Walk(ctx, source, []nix.StorePath{c.Top()})
	if err != nil {
		t.Fatal(err)
	}
	target := &strictTarget{Store: nixtest.NewStore()}
	plan, err := closure.Negotiate(ctx, all, source, target, closure.Terms{})
	if err != nil {
		t.Fatal(err)
	}
	cancel(cause)
	if err := closure.Copy(ctx, plan, source, target, closure.CopyOptions{Lanes: 2}); !errors.Is(err, cause) {
		t.Errorf("error %v, want %v", err, cause)
	}
}

func TestNegotiate(t *testing.T) {
	c := nixtest.Chain(6)
	target := &strictTarget{Store: nixtest.NewStore(c[:4]...)}
	plan, err := push(t, c, target, closure.Terms{DryRun: true}, closure.CopyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Present) != 4 || len(plan.Send) != 2 || plan.Send[0].Path != c[4].Info.Path {
		t.Errorf("plan has %d present and sends %v", len(plan.Present), plan.Send)
	}
	if !slices.Equal(target.locked, []bool{false}) {
		t.Errorf("a dry run locked paths: %v", target.locked)
	}
}

// A cachedTarget has a cache with one path in it; a foreseeing one can tell that.
type cachedTarget struct {
	*strictTarget
	cached nix.StorePath
	taken  bool
}

func (t *cachedTarget) Substitute(context.Context, []nix.StorePath) ([]nix.StorePath, error) {
	t.taken = true
	return []nix.StorePath{t.cached}, nil
}

type foreseeingTarget struct{ *cachedTarget }

func (t foreseeingTarget) Substitutable(context.Context, []nix.StorePath) ([]nix.StorePath, error) {
	return []nix.StorePath{t.cached}, nil
}

// An offeringTarget is one that may say beforehand which cache has the path.
type offeringTarget struct {
	*cachedTarget
	able bool
}

func (t offeringTarget) CanOffer() bool { return t.able }

func (t offeringTarget) Offers(_ context.Context, infos []*nix.PathInfo) (offers []closure.Offer, err error) {
	for _, info := range infos {
		if info.Path == t.cached {
			offers = append(offers, closure.Offer{Info: info, Cache: "cache", Download: 5})
		}
	}
	return offers, nil
}

// TestNegotiateOffers has a destination that says what its caches have: nothing is
// taken from them before the rest can be sent.
func TestNegotiateOffers(t *testing.T) {
	c := nixtest.Chain(4)
	for _, test := range []struct {
		name                    string
		terms                   closure.Terms
		able                    bool
		substitute, fetch, send int
	}{
		{"copy", closure.Terms{Substitute: true}, true, 0, 1, 2},
		{"dry run", closure.Terms{Substitute: true, DryRun: true}, true, 0, 1, 2},
		{"not asked for", closure.Terms{}, true, 0, 0, 3},
		{"not able", closure.Terms{Substitute: true}, false, 1, 0, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			target := &cachedTarget{strictTarget: &strictTarget{Store: nixtest.NewStore(c[0])}, cached: c[1].Info.Path}
			source := memorySource{nixtest.NewStore(c...)}
			all, err := closure.Walk(t.Context(), source, []nix.StorePath{c.Top()})
			if err != nil {
				t.Fatal(err)
			}
			plan, err := closure.Negotiate(t.Context(), all, source, offeringTarget{target, test.able}, test.terms)
			if err != nil {
				t.Fatal(err)
			}
			if len(plan.Substitute) != test.substitute || len(plan.Fetch) != test.fetch || len(plan.Send) != test.send {
				t.Errorf("plan substitutes %d, fetches %d, sends %d, want %+v", len(plan.Substitute), len(plan.Fetch), len(plan.Send), test)
			}
			if target.taken != (test.substitute > 0) {
				t.Errorf("taken from the cache: %t", target.taken)
			}
		})
	}
}

func TestNegotiateSubstitution(t *testing.T) {
	c := nixtest.Chain(4)
	for _, test := range []struct {
		name                      string
		terms                     closure.Terms
		foresees                  bool
		substitute, unknown, send int
		taken                     bool
	}{
		{"not asked for", closure.Terms{}, true, 0, 0, 3, false},
		{"done", closure.Terms{Substitute: true}, false, 1, 0, 2, true},
		{"foreseen", closure.Terms{Substitute: true, DryRun: true}, true, 1, 0, 2, false},
		{"not told", closure.Terms{Substitute: true, DryRun: true}, false, 0, 3, 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			target := &cachedTarget{strictTarget: &strictTarget{Store: nixtest.NewStore(c[0])}, cached: c[1].Info.Path}
			var dst closure.Target = target
			if test.foresees {
				dst = foreseeingTarget{target}
			}
			source := memorySource{nixtest.NewStore(c...)}
			all, err := closure.Walk(t.Context(), source, []nix.StorePath{c.Top()})
			if err != nil {
				t.Fatal(err)
			}
			plan, err := closure.Negotiate(t.Context(), all, source, dst, test.terms)
			if err != nil {
				t.Fatal(err)
			}
			if len(plan.Substitute) != test.substitute || len(plan.Unknown) != test.unknown || len(plan.Send) != test.send || target.taken != test.taken {
				t.Errorf("plan substitutes %d, sends %d, %d are unknown, taken %v; want %+v",
					len(plan.Substitute), len(plan.Send), len(plan.Unknown), target.taken, test)
			}
		})
	}
}

// TestWalk compares the walk in levels with the question for a whole closure.
func TestWalk(t *testing.T) {
	c := nixtest.Random(11, 200)
	source := memorySource{nixtest.NewStore(c...)}
	roots := []nix.StorePath{c.Top(), c.Top(), c[17].Info.Path}
	want, err := closure.Walk(t.Context(), source, roots)
	if err != nil {
		t.Fatal(err)
	}
	plain := &plainSource{Source: struct{ closure.Source }{source}}
	got, err := closure.Walk(t.Context(), plain, roots)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Paths, want.Paths) {
		t.Errorf("walk found %d paths, the store %d", len(got.Paths), len(want.Paths))
	}
	if plain.questions >= len(got.Paths) {
		t.Errorf("%d questions for %d paths", plain.questions, len(got.Paths))
	}
}

// An outputSource knows one derivation's output.
type outputSource struct {
	memorySource
	drv, out nix.StorePath
}

func (s outputSource) ValidOutputs(_ context.Context, derivations []nix.StorePath) ([]nix.StorePath, error) {
	if slices.Contains(derivations, s.drv) {
		return []nix.StorePath{s.out}, nil
	}
	return nil, nil
}

func TestWalkOutputs(t *testing.T) {
	drv, out := nixtest.Derivation("tool", nixtest.Node{Content: "output"})
	c := nixtest.Chain(2)
	source := outputSource{memorySource{nixtest.NewStore(append(c, drv, out)...)}, drv.Info.Path, out.Info.Path}
	roots := []nix.StorePath{drv.Info.Path, c.Top()}
	for name, test := range map[string]struct {
		walk func(context.Context, closure.Source, []nix.StorePath) (*closure.Closure, error)
		want int
	}{
		"without": {closure.Walk, 3},
		"with":    {closure.WalkOutputs, 4},
	} {
		all, err := test.walk(t.Context(), source, roots)
		if err != nil {
			t.Fatal(err)
		}
		if len(all.Paths) != test.want || !slices.Equal(all.Roots, roots) {
			t.Errorf("%s outputs: %d paths with roots %v, want %d", name, len(all.Paths), all.Roots, test.want)
		}
	}
}

func TestWalkMissing(t *testing.T) {
	c := nixtest.Chain(5)
	store := nixtest.NewStore(c...)
	store.Remove(c[2].Info.Path)
	_, err := closure.Walk(t.Context(), &plainSource{Source: struct{ closure.Source }{memorySource{store}}}, []nix.StorePath{c.Top()})
	if !errors.Is(err, nix.ErrNotValid) || !strings.Contains(err.Error(), c[2].Info.Path.String()) {
		t.Errorf("error %v, want one that names %s", err, c[2].Info.Path)
	}
}

func TestSort(t *testing.T) {
	c := nixtest.Random(2, 500)
	infos := c.Infos()
	slices.Reverse(infos)
	sorted, err := closure.Sort(infos)
	if err != nil {
		t.Fatal(err)
	}
	place := make(map[nix.StorePath]int)
	for i, info := range sorted {
		place[info.Path] = i
	}
	if len(place) != len(c) {
		t.Fatalf("%d paths after sorting, want %d", len(place), len(c))
	}
	for _, info := range sorted {
		for _, ref := range info.References {
			if place[ref] > place[info.Path] {
				t.Fatalf("%s comes after its referrer %s", ref, info.Path)
			}
		}
	}
}

func TestSortCycle(t *testing.T) {
	infos := nixtest.Chain(6).Infos()
	infos[2].References = append(infos[2].References, infos[4].Path)
	_, err := closure.Sort(infos)
	var cycle *closure.CycleError
	if !errors.As(err, &cycle) || len(cycle.Paths) != 3 {
		t.Fatalf("error %v, want a cycle of three", err)
	}
	for _, p := range cycle.Paths {
		if !slices.ContainsFunc(infos[2:5], func(info *nix.PathInfo) bool { return info.Path == p }) {
			t.Errorf("%s is not part of the cycle", p)
		}
	}
}

// TestDeepChain must not need a stack as deep as the closure.
func TestDeepChain(t *testing.T) {
	c := nixtest.Chain(20000)
	if _, err := closure.Sort(c.Infos()); err != nil {
		t.Fatal(err)
	}
}

package closure

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"

	"golang.org/x/time/rate"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/progress"
)

// CopyOptions say how a plan is carried out. The zero value copies in one lane.
type CopyOptions struct {
	Lanes  int         // at most so many lanes side by side
	Caches CacheSource // of what the plan fetches
	// CacheLanes are further lanes, from the caches.
	CacheLanes int
	// There, if not nil, takes what the plan fetches from caches that it reaches by
	// itself, in place of Caches. It need not get all.
	There  SubstitutingTarget
	Prefer Preference // of paths that both have
	// BestEffort goes on without paths that cannot be had.
	BestEffort bool
	// Arrived is called when a path is valid, from any goroutine; nil: nobody asks.
	Arrived func(p nix.StorePath, fetched bool)
	Limit   *rate.Limiter   // of NAR bytes per second; nil: none
	Meter   *progress.Meter // nil discards
	Logger  *slog.Logger    // nil discards
}

// Copy sends what plan says is ours to send from src to dst. It returns when every
// path is valid there; on an error those that are valid stay so, and a second run
// sends the rest. What plan says is to be fetched comes from the caches at the same
// time, and from src where they fail and dst goes on after that; src may be nil if all
// is fetched. Lanes are left open for whoever opened the stores to close.
func Copy(ctx context.Context, plan *Plan, src Source, dst Target, o CopyOptions) error {
	if len(plan.Send)+len(plan.Fetch) == 0 {
		return nil
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	infos, offered, err := plan.moving()
	if err != nil {
		return err
	}
	_, tolerant := dst.(TolerantTarget)
	_, partial := src.(PartialSource)
	c := &copying{
		CopyOptions: o,
		src:         src,
		dst:         dst,
		schedule: newSchedule(scheduling{
			infos: infos, offered: offered, source: src != nil,
			anyOrder: dst.AnyOrder(), partial: partial, tolerant: tolerant || o.There != nil, there: o.There != nil,
			bestEffort: o.BestEffort, prefer: o.Prefer,
		}),
	}
	if v, ok := dst.(VerifyingTarget); ok {
		c.verified = v.VerifiesNARs()
	}
	stop := context.AfterFunc(ctx, func() { c.schedule.fail(context.Cause(ctx)) })
	defer stop()
	defer c.schedule.reconsider()()
	var lanes sync.WaitGroup
	o.Meter.Expect(len(infos), narBytes(infos))
	if src != nil {
		c.wanted[bySource] = max(1, min(o.Lanes, len(infos)))
	}
	switch {
	case len(offered) > 0 && o.There != nil:
		lanes.Go(func() { c.runThere(ctx) })
	case len(offered) > 0:
		c.wanted[byCaches] = max(1, min(o.CacheLanes, len(offered)))
	}
	for by, n := range c.wanted {
		for range n {
			lanes.Go(func() { c.runLane(ctx, provider(by)) })
		}
	}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		lanes.Wait()
		c.finish(ctx)
	}()
	err = c.schedule.wait()
	if err != nil {
		cancel(err)
	}
	<-finished
	return c.verdict(err)
}

// moving returns what is to be copied, references first, and which of it caches offer.
func (p *Plan) moving() ([]*nix.PathInfo, map[nix.StorePath]int64, error) {
	if len(p.Fetch) == 0 {
		return p.Send, nil, nil
	}
	infos, offered := slices.Clone(p.Send), make(map[nix.StorePath]int64, len(p.Fetch))
	for _, offer := range p.Fetch {
		infos, offered[offer.Info.Path] = append(infos, offer.Info), offer.Download
	}
	infos, err := Sort(infos)
	return infos, offered, err
}

// A copying is one run of Copy.
type copying struct {
	CopyOptions
	src      Source
	dst      Target
	schedule *schedule
	verified bool           // dst hashes what comes
	wanted   [providers]int // lanes

	mu     sync.Mutex
	failed [providers]int // lanes that could not be opened
}

// verdict is the error of the schedule, which may have become better while the
// lanes ended.
func (c *copying) verdict(err error) error {
	if err == nil {
		return nil
	}
	return c.schedule.wait()
}

// finish has the destination decide what it has put off, after the last path was
// added.
func (c *copying) finish(ctx context.Context) {
	f, ok := c.dst.(Finisher)
	if !ok || ctx.Err() != nil {
		return
	}
	if err := f.Finish(ctx); err != nil {
		c.schedule.fail(err)
	}
}

// A lane is a way from the source to the destination.
type lane struct {
	*copying
	by     provider
	number int
	added  int // paths since the lane was flushed
	from   SourceLane
	to     TargetLane
}

// runLane opens a lane and copies through it what the schedule assigns to it.
func (c *copying) runLane(ctx context.Context, by provider) {
	l, err := c.openLane(ctx, by)
	if err != nil {
		c.laneFailed(by, err)
		return
	}
	stop := context.AfterFunc(ctx, func() { l.from.Abort(); l.to.Abort() })
	defer stop()
	l.number = c.schedule.addLane(by, l.from.Lookahead())
	assigned := make(chan *task, maxAssigned)
	var requesting sync.WaitGroup
	requesting.Go(func() { l.request(ctx, assigned) })
	if err := l.copyAll(ctx, assigned); err != nil {
		c.schedule.fail(err)
	}
	requesting.Wait()
}

// maxAssigned bounds the paths that wait in a lane; the schedule bounds their bytes.
const maxAssigned = 16 << 10

func (c *copying) openLane(ctx context.Context, by provider) (*lane, error) {
	to, err := c.dst.OpenLane(ctx)
	if err != nil {
		return nil, err
	}
	src := c.src
	if by == byCaches {
		src = c.Caches
	}
	from, err := src.OpenLane(ctx)
	if err != nil {
		return nil, err
	}
	return &lane{copying: c, by: by, from: from, to: to}, nil
}

// laneFailed goes on with the other lanes where there are any: a far end may allow
// only so many sessions.
func (c *copying) laneFailed(by provider, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed[by]++
	if c.failed[by] == c.wanted[by] {
		c.schedule.fail(err)
		return
	}
	c.Logger.Debug("a further session cannot be had, going on without it", "reason", err)
}

// request takes what the schedule assigns and asks the source for it.
func (l *lane) request(ctx context.Context, assigned chan<- *task) {
	defer close(assigned)
	for t := l.schedule.next(l.number); t != nil; t = l.schedule.next(l.number) {
		if err := l.from.Request(ctx, t.info); err != nil {
			l.schedule.fail(err)
			return
		}
		assigned <- t
	}
}

// copyAll copies the assigned paths in their order.
func (l *lane) copyAll(ctx context.Context, assigned <-chan *task) error {
	var broken error
	for {
		t, more := l.nextAssigned(ctx, assigned)
		if !more {
			return broken
		}
		if broken == nil {
			l.schedule.taken(t)
			broken = l.copyPath(ctx, t)
		}
		if broken != nil {
			l.schedule.fail(broken)
		}
	}
}

// nextAssigned flushes the lane before it waits.
func (l *lane) nextAssigned(ctx context.Context, assigned <-chan *task) (*task, bool) {
	select {
	case t, more := <-assigned:
		if more {
			return t, true
		}
	default:
	}
	if err := l.to.Flush(ctx); err != nil {
		l.schedule.fail(err)
	}
	l.schedule.settle(l.added)
	l.added = 0
	t, more := <-assigned
	return t, more
}

// copyPath moves one path from the lane's source to its target.
func (l *lane) copyPath(ctx context.Context, t *task) error {
	stop := l.Meter.Start(t.info.Path.Name())
	defer stop()
	contents, err := l.from.Next(ctx)
	if err != nil {
		return err
	}
	defer contents.Close()
	narCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	attempt := l.schedule.bring(t, cancel)
	defer attempt.end()
	nar := &checkedNAR{ctx: narCtx, nar: contents, info: t.info, meter: l.Meter, count: attempt.passed, unhashed: l.verified}
	if l.by == bySource {
		nar.limit = l.Limit
	}
	_, nar.partial = contents.(PartialNAR)
	l.added++
	err = l.to.Add(ctx, t.info, nar, func(err error) {
		if err != nil {
			l.lost(ctx, t, nar, err)
			return
		}
		l.arrived(t, l.by)
	})
	if (l.by == byCaches || nar.partial) && l.schedule.tolerant && isSourceError(err) {
		return nil // of this path alone
	}
	return err
}

// arrived says that a path is valid.
func (c *copying) arrived(t *task, by provider) {
	c.Meter.Path()
	c.Logger.Info("copied", "path", t.info.Path, "bytes", t.info.NARSize)
	if c.Arrived != nil {
		c.Arrived(t.info.Path, by == byCaches)
	}
	c.schedule.arrived(t)
}

// lost has a path brought by somebody else where that makes sense.
func (l *lane) lost(ctx context.Context, t *task, nar *checkedNAR, err error) {
	fault := isSourceError(err) || errors.Is(err, nix.ErrDamaged)
	forGood := l.by == bySource && !nar.partial || !fault || errors.Is(err, ErrNowhereElse) || errors.Is(err, errTaken)
	if ctx.Err() != nil || !fault && !l.BestEffort {
		l.schedule.fail(err)
		return
	}
	if l.schedule.tolerant {
		l.Logger.Info("trying to get a path elsewhere", "path", t.info.Path, "because", err)
		l.Meter.Bytes(-int(nar.passed))
	}
	l.schedule.lost(t, err, forGood)
}

func isSourceError(err error) bool {
	var e *sourceError
	return errors.As(err, &e)
}

// isConsequence reports whether err only tells that something else went wrong.
func isConsequence(err error) bool {
	var c interface{ Consequence() bool }
	return errors.Is(err, context.Canceled) || errors.As(err, &c) && c.Consequence()
}

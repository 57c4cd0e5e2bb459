package closure

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"golang.org/x/time/rate"

	"github.com/copy-closure/copy-closure/internal/progress"
)

// CopyOptions say how a plan is carried out. The zero value copies in one lane.
type CopyOptions struct {
	Lanes  int             // at most so many lanes side by side
	Limit  *rate.Limiter   // of NAR bytes per second; nil: none
	Meter  *progress.Meter // nil discards
	Logger *slog.Logger    // nil discards
}

// Copy sends what plan says is ours to send from src to dst. It returns when every
// path is valid there; on an error those that are valid stay so, and a second run
// sends the rest. Lanes are left open for whoever opened the stores to close.
func Copy(ctx context.Context, plan *Plan, src Source, dst Target, o CopyOptions) error {
	if len(plan.Send) == 0 {
		return nil
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c := &copying{
		CopyOptions: o,
		src:         src,
		dst:         dst,
		schedule:    newSchedule(plan.Send, dst.AnyOrder()),
	}
	stop := context.AfterFunc(ctx, func() { c.schedule.fail(context.Cause(ctx)) })
	defer stop()
	o.Meter.Expect(len(plan.Send), plan.SendBytes())
	c.wanted = max(1, min(o.Lanes, len(plan.Send)))
	var lanes sync.WaitGroup
	for range c.wanted {
		lanes.Go(func() { c.runLane(ctx) })
	}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		lanes.Wait()
		c.finish(ctx)
	}()
	err := c.schedule.wait()
	if err != nil {
		cancel(err)
	}
	<-finished
	return c.verdict(err)
}

// A copying is one run of Copy.
type copying struct {
	CopyOptions
	src      Source
	dst      Target
	schedule *schedule
	wanted   int // lanes

	mu     sync.Mutex
	failed int // lanes that could not be opened
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
	number int
	from   SourceLane
	to     TargetLane
}

// runLane opens a lane and copies through it what the schedule assigns to it.
func (c *copying) runLane(ctx context.Context) {
	l, err := c.openLane(ctx)
	if err != nil {
		c.laneFailed(err)
		return
	}
	stop := context.AfterFunc(ctx, func() { l.from.Abort(); l.to.Abort() })
	defer stop()
	l.number = c.schedule.addLane(l.from.Lookahead())
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

func (c *copying) openLane(ctx context.Context) (*lane, error) {
	to, err := c.dst.OpenLane(ctx)
	if err != nil {
		return nil, err
	}
	from, err := c.src.OpenLane(ctx)
	if err != nil {
		return nil, err
	}
	return &lane{copying: c, from: from, to: to}, nil
}

// laneFailed goes on with the other lanes where there are any: a far end may allow
// only so many sessions.
func (c *copying) laneFailed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed++
	if c.failed == c.wanted {
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
	nar := &checkedNAR{ctx: ctx, nar: contents, info: t.info, meter: l.Meter, limit: l.Limit}
	return l.to.Add(ctx, t.info, nar, func(err error) {
		if err != nil {
			l.schedule.fail(err)
			return
		}
		l.Meter.Path()
		l.Logger.Info("copied", "path", t.info.Path, "bytes", t.info.NARSize)
		l.schedule.arrived(t)
	})
}

// isConsequence reports whether err only tells that something else went wrong.
func isConsequence(err error) bool {
	var c interface{ Consequence() bool }
	return errors.Is(err, context.Canceled) || errors.As(err, &c) && c.Consequence()
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/time/rate"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/progress"
	"github.com/copy-closure/copy-closure/internal/ui"
	"github.com/copy-closure/copy-closure/internal/version"
	"github.com/copy-closure/copy-closure/remote"
)

// copyCommand is the program's main job.
func (p *program) copyCommand(c *cli.Context, compatible bool) error {
	if c.Bool("version") {
		_, err := fmt.Fprintf(p.stdout, "copy-closure %s (%s)\n", version.String(), remote.Protocols())
		return err
	}
	if err := p.setOutput(c); err != nil {
		return err
	}
	request, err := p.copyRequest(c, compatible)
	if err != nil {
		return err
	}
	return p.runCopy(c.Context, request)
}

// runCopy copies, or plans a copy, and says in its error which.
func (p *program) runCopy(ctx context.Context, request *copyRequest) (err error) {
	r := &copyRun{program: p, copyRequest: request, started: time.Now()}
	run := r.doPush
	if r.pull {
		run = r.doPull
	}
	err = r.retrying(ctx, run)
	if err == nil {
		return nil
	}
	if errors.Is(context.Cause(ctx), errInterrupted) {
		return fmt.Errorf("%s %s: %w; what has arrived stays, and the same command sends the rest", r.verb(), r.host.name, errInterrupted)
	}
	return fmt.Errorf("%s %s: %w", r.verb(), r.host.name, err)
}

// A copyRun is one copy under way.
type copyRun struct {
	*program
	*copyRequest
	started time.Time
	asked   bool  // a person had to answer something to log in
	kept    int64 // bytes of NARs that the receiver had kept before this attempt
	gained  bool  // the last attempt has brought something that stays
	traffic traffic
}

func (r *copyRun) verb() string {
	if r.pull {
		return "pull"
	}
	return "push"
}

// there is the host as the last line names it.
func (r *copyRun) there() string {
	if r.pull {
		return "from " + r.host.name
	}
	return "to " + r.host.name
}

// daemonPlace is where paths are copied to.
func (r *copyRun) daemonPlace() string {
	if r.pull {
		return "of this machine"
	}
	return "on " + r.host.name
}

// purpose is toLook for a dry run.
func (r *copyRun) purpose(otherwise purpose) purpose {
	if r.terms.DryRun {
		return toLook
	}
	return otherwise
}

// doPush walks here, and then connects.
func (r *copyRun) doPush(ctx context.Context) (err error) {
	leaveProcessors()
	local, err := r.openLocal(ctx, r.store, r.purpose(toRead))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, local.close()) }()
	if s, ok := local.source.(serveSource); ok {
		s.outputs = r.outputs
		local.source = s
	}
	roots, err := local.resolve(ctx, r.args)
	if err != nil {
		return err
	}
	all, err := r.walk(ctx, local.source, roots)
	if err != nil {
		return &notInSourceError{err}
	}
	r.log.Info("walked the closure", "paths", len(all.Paths), "after", ui.Seconds(time.Since(r.started)))
	return r.atFar(ctx, func(far *farEnd) error {
		return r.transfer(ctx, all, ends{local.source, far.target(), far, local, far})
	})
}

// doPull connects, and then walks there.
func (r *copyRun) doPull(ctx context.Context) (err error) {
	local, err := r.openLocal(ctx, r.store, r.purpose(toWrite))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, local.close()) }()
	return r.atFar(ctx, func(far *farEnd) error {
		roots, err := far.resolve(ctx, r.args, local)
		if err != nil {
			return err
		}
		source := far.source(ctx, r.outputs, r.log)
		all, err := r.walk(ctx, source, roots)
		if err != nil {
			return &notInSourceError{err}
		}
		return r.transfer(ctx, all, ends{source, local.target, local, local, far})
	})
}

func (r *copyRun) walk(ctx context.Context, source closure.Source, roots []nix.StorePath) (*closure.Closure, error) {
	if r.outputs {
		return closure.WalkOutputs(ctx, source, roots)
	}
	return closure.Walk(ctx, source, roots)
}

// ends are the two stores of a copy in their roles.
type ends struct {
	source closure.Source
	target closure.Target
	rooted rooter // where the closure lands
	local  *localEnd
	far    *farEnd
}

// transfer negotiates, copies and roots, in this order, and prints the result.
func (r *copyRun) transfer(ctx context.Context, all *closure.Closure, e ends) error {
	caches, err := r.cachesFor(ctx, e)
	if err != nil {
		return err
	}
	terms := r.terms
	switch {
	case caches != nil:
		terms.Caches = caches
	case r.prefer == closure.PreferPush:
		terms.Substitute = false
	}
	plan, err := closure.Negotiate(ctx, all, e.source, e.target, terms)
	if err != nil {
		return err
	}
	moving := slices.Concat(plan.Send, plan.Unknown)
	for _, offer := range plan.Fetch {
		moving = append(moving, offer.Info)
	}
	if err := signInFlight(moving, r.signWith); err != nil {
		return err
	}
	if !e.far.empty {
		r.tell(e.far)
	}
	report := &copyReport{Host: r.host.name, Pull: r.pull, DryRun: r.terms.DryRun, Plan: reportPlan(plan)}
	if r.terms.DryRun {
		foreseen, err := r.foresee(ctx, plan, e)
		if err != nil {
			return err
		}
		return r.printDryRun(all, plan, foreseen, report)
	}
	if err := r.beforeData(ctx, plan, e); err != nil {
		return err
	}
	if err := r.copy(ctx, plan, e, caches); err != nil {
		return err
	}
	if err := r.signThere(ctx, plan, e); err != nil {
		return err
	}
	result := &copyResult{Sent: len(plan.Send), SentBytes: plan.SendBytes(), Fetched: len(plan.Fetch)}
	if err := e.rooted.makeRoots(ctx, r.roots, plan.Roots, result); err != nil {
		return err
	}
	report.Result = result
	if err := r.printResult(plan, report, e.far.roundTrips(len(plan.Send) > 0)); err != nil {
		return err
	}
	if !r.quiet && !r.pull {
		r.suggestOurs(plan.SendBytes(), e.far)
	}
	return nil
}

// tell says what answered at the far end.
func (r *copyRun) tell(far *farEnd) {
	what := []any{"through", far.conn.Describe(), "to", far.Describe(), "after", ui.Seconds(time.Since(r.started))}
	if above := remote.Above(far.protocolStore.Program()); above != "" && r.host.program == "" && r.bootstrap != bootstrapAlways {
		what = append(what, "not there", above)
	}
	r.log.Info("connected", what...)
	if r.pull && !r.terms.DryRun && far.Forced() {
		r.log.Info("a forced command runs at the far end: whether it keeps the paths from garbage collection while they are copied cannot be told")
	}
}

// beforeData makes the checks that should fail before anything is sent.
func (r *copyRun) beforeData(ctx context.Context, plan *closure.Plan, e ends) error {
	if r.pull && r.checkSigs {
		if err := r.checkTrust(plan.Send); err != nil {
			return err
		}
	}
	if target, ok := e.target.(trustTeller); ok {
		if err := checkDaemonTrust(ctx, target, r.daemonPlace(), plan.Send); err != nil {
			return err
		}
	}
	if err := r.beAtomic(plan, e); err != nil {
		return err
	}
	if err := r.checkRoom(ctx, plan, e); err != nil {
		return err
	}
	return e.rooted.checkRoots(ctx, r.roots)
}

// copy sends what is ours to send, with its progress on the screen. In the end plan
// tells what has come from where.
func (r *copyRun) copy(ctx context.Context, plan *closure.Plan, e ends, caches *cacheSource) error {
	meter := new(progress.Meter)
	stop := r.screen.Show(meter)
	defer stop()
	defer func() { r.countGain(e.far, meter.State()) }()
	lanes := r.sessions
	if lanes == 0 {
		lanes = e.far.lanesFor(plan, r.pull, r.connections)
	}
	e.far.conn.Widen(ctx, min(r.connections, lanes))
	r.log.Info("copying", "paths", len(plan.Send), "bytes", plan.SendBytes(), "sessions", lanes)
	there, err := r.openThere(ctx, plan, e, caches)
	if err != nil {
		return err
	}
	limit := limiter(r.limit)
	if store, ok := e.far.protocolStore.(*remote.Store); ok && store.OffersPeer() && len(plan.Send) > 0 {
		if lanes, err = r.speakPeer(ctx, store, &e, plan.Send, lanes); err != nil {
			return err
		}
		limit = nil // it is for the bytes on the link there
		r.log.Info("going on in our own protocol", "channels", lanes)
	}
	o := closure.CopyOptions{
		Lanes:  lanes,
		Limit:  limit,
		Meter:  meter,
		Logger: r.log,
	}
	if caches == nil && len(plan.Fetch) == 0 {
		return closure.Copy(ctx, plan, e.source, e.target, o)
	}
	fetched := new(arrivals)
	o.Prefer, o.Arrived = r.prefer, fetched.add
	if r.pull {
		o.Caches, o.CacheLanes = caches, cacheLanes
	} else {
		o.There = there
	}
	err = closure.Copy(ctx, plan, e.source, e.target, o)
	fetched.correct(plan, !r.pull)
	return err
}

// limiter returns nil for no limit. Its burst is small enough for an even flow and
// large enough for one write.
func limiter(bytesPerSecond int) *rate.Limiter {
	if bytesPerSecond == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytesPerSecond), max(bytesPerSecond/10, 4<<10))
}

func (r *copyRun) printDryRun(all *closure.Closure, plan *closure.Plan, foreseen *forecast, report *copyReport) error {
	if r.html != "" {
		if err := r.writePage(all, plan, foreseen); err != nil {
			return err
		}
	}
	if r.json {
		report.Forecast = foreseen.report()
		report.Plan.tellDeltas(foreseen)
		return printJSON(r.stdout, report)
	}
	printPlan(r.stdout, plan, foreseen, planSummary(plan, r.verb(), r.there()))
	return nil
}

func (r *copyRun) printResult(plan *closure.Plan, report *copyReport, roundTrips int) error {
	took := time.Since(r.started)
	link := r.traffic.sent.Load()
	if r.pull {
		link = r.traffic.received.Load()
	}
	report.Result.LinkBytes, report.Result.RoundTrips, report.Result.Seconds = link, roundTrips, took.Seconds()
	if !r.quiet {
		fmt.Fprintln(r.screen, truth(plan, r.verb()+"ed", r.there(), link, roundTrips, took))
	}
	if r.json {
		return printJSON(r.stdout, report)
	}
	return nil
}

// suggestOurs says, behind a long push to a real Nix, what would make the next one
// shorter.
func (r *copyRun) suggestOurs(sent int64, far *farEnd) {
	if !r.host.worker && !far.ours() && oursWouldHelp(sent, far.conn.RTT(), time.Since(r.started)) {
		fmt.Fprintf(r.screen, "copy-closure on %s would have been sent less: compressed, and of what is there already only what changed (see README)\n", r.host.name)
	}
}

// oursWouldHelp reports whether a push was so long that our own protocol would have
// made much of it unnecessary. A round trip of 0 is not known.
func oursWouldHelp(sent int64, rtt, took time.Duration) bool {
	const (
		much = 50 << 20 // bytes of NARs
		far  = 20 * time.Millisecond
		long = time.Minute
	)
	return sent > much && (rtt > far || took > long)
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/progress"
	"github.com/copy-closure/copy-closure/internal/show"
	"github.com/copy-closure/copy-closure/internal/ui"
	"github.com/copy-closure/copy-closure/substitute"
)

// fetchCommand is a pull without a producer: from caches alone.
func (p *program) fetchCommand() *cli.Command {
	return &cli.Command{
		Name:      "fetch",
		Usage:     "take paths with all they refer to from binary caches",
		ArgsUsage: "PATH…",
		Flags: append(append([]cli.Flag{
			&cli.StringSliceFlag{Name: "from-cache", Usage: "use the cache at `URL` instead of those of the configuration (may be repeated)"},
			&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "print the plan and change nothing"},
			&cli.BoolFlag{Name: "no-check-sigs", Usage: "take paths that no trusted key has signed"},
			stdinFlag,
			&cli.StringSliceFlag{Name: "add-root", Usage: "make `LINK` a garbage collector root for the PATH (one for each PATH)"},
			&cli.StringFlag{Name: "profile", Aliases: []string{"p"}, Usage: "make the PATH a new generation of `PROFILE`"},
			&cli.StringFlag{Name: "progress", Value: "auto", Usage: "`HOW` to show progress: auto, bar, plain or none"},
			&cli.BoolFlag{Name: "json", Usage: "print plan and result as one JSON object"},
			storeFlag,
		}, cacheFlags()...), logFlags...),
		Action: func(c *cli.Context) error {
			if err := p.setOutput(c); err != nil {
				return err
			}
			r, err := p.fetchRequest(c)
			if err != nil {
				return err
			}
			if err := r.run(c.Context); err != nil {
				if errors.Is(context.Cause(c.Context), errInterrupted) {
					err = fmt.Errorf("%w; what has arrived stays, and the same command fetches the rest", errInterrupted)
				}
				return fmt.Errorf("fetch: %w", err)
			}
			return nil
		},
	}
}

// A fetchRun is one fetch under way.
type fetchRun struct {
	*program
	started time.Time
	caches  cacheRequest
	paths   []nix.StorePath
	store   string
	dryRun  bool
	roots   rootRequest
	json    bool
	quiet   bool
}

func (p *program) fetchRequest(c *cli.Context) (*fetchRun, error) {
	r := &fetchRun{
		program: p,
		started: time.Now(),
		caches:  readCacheRequest(c),
		store:   c.String("store"),
		dryRun:  c.Bool("dry-run"),
		roots:   rootRequest{links: c.StringSlice("add-root"), profile: c.String("profile")},
		json:    c.Bool("json"),
		quiet:   c.Bool("quiet"),
	}
	r.caches.only = c.StringSlice("from-cache")
	args, err := p.pathArguments(c, c.Args().Slice())
	if err != nil {
		return nil, err
	}
	if len(args) == 0 {
		return nil, usagef("say which paths to fetch: %s fetch PATH…", p.name)
	}
	if _, err := p.choose(r.store); err != nil {
		return nil, err
	}
	for _, arg := range args {
		path, _, err := storeDir().Split(arg)
		if err != nil {
			return nil, usagef("%v", err)
		}
		r.paths = append(r.paths, path)
	}
	return r, r.roots.check(len(r.paths))
}

// run fetches. Where what a cache said earlier may be the reason of a failure, because it
// was filled anew since, it is asked again, once.
func (r *fetchRun) run(ctx context.Context) error {
	caches, err := r.openSubstituters(ctx, r.caches)
	if err != nil {
		return err
	}
	err = r.fetch(ctx, caches)
	if caches == nil || !caches.Remembered() || !mayBeOutdated(err) || ctx.Err() != nil {
		return err
	}
	r.log.Info("asking the caches again, which may have changed since they were asked", "reason", err)
	r.caches.refresh = true
	if caches, err = r.openSubstituters(ctx, r.caches); err != nil {
		return err
	}
	return r.fetch(ctx, caches)
}

// mayBeOutdated reports whether an answer of a cache could have been wrong.
func mayBeOutdated(err error) bool {
	for _, reason := range []error{nix.ErrNotValid, nix.ErrDamaged, closure.ErrNowhereElse} {
		if errors.Is(err, reason) {
			return true
		}
	}
	return false
}

func (r *fetchRun) fetch(ctx context.Context, caches *substitute.Substituters) (err error) {
	if caches == nil {
		return usagef("there is no cache: say --from-cache URL, or set substituters in nix.conf")
	}
	why := toWrite
	if r.dryRun {
		why = toLook
	}
	local, err := r.openLocal(ctx, r.store, why)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, local.close()) }()
	source := newCacheSource(caches, local)
	all, err := closure.Walk(ctx, source, r.paths)
	if err != nil {
		return &notInSourceError{err}
	}
	r.log.Info("found the closure", "paths", len(all.Paths), "after", ui.Seconds(time.Since(r.started)))
	plan, err := closure.Negotiate(ctx, all, source, local.target, closure.Terms{DryRun: r.dryRun, Caches: source})
	if err != nil {
		return err
	}
	report := &fetchReport{DryRun: r.dryRun, Plan: reportPlan(plan)}
	if r.dryRun {
		return r.printPlan(plan, report)
	}
	if err := local.checkRoots(ctx, r.roots); err != nil {
		return err
	}
	if err := r.copy(ctx, plan, source, local); err != nil {
		return err
	}
	result := new(copyResult)
	if err := local.makeRoots(ctx, r.roots, r.paths, result); err != nil {
		return err
	}
	report.Result = &fetchResult{Fetched: len(plan.Fetch), Roots: result.Roots, Generation: result.Generation}
	return r.printResult(plan, report)
}

func (r *fetchRun) copy(ctx context.Context, plan *closure.Plan, source *cacheSource, local *localEnd) error {
	meter := new(progress.Meter)
	stop := r.screen.Show(meter)
	defer stop()
	return closure.Copy(ctx, plan, nil, local.target, closure.CopyOptions{
		Caches:     source,
		CacheLanes: cacheLanes,
		Meter:      meter,
		Logger:     r.log,
	})
}

// A fetchReport is what --json prints. Field names are part of the command line's
// contract.
type fetchReport struct {
	DryRun bool         `json:"dryRun"`
	Plan   planReport   `json:"plan"`
	Result *fetchResult `json:"result,omitempty"`
}

type fetchResult struct {
	Fetched    int      `json:"fetched"`
	Seconds    float64  `json:"seconds"`
	Generation int      `json:"generation,omitempty"` // of --profile, where it is known
	Roots      []string `json:"gcRoots,omitempty"`
}

func (r *fetchRun) printPlan(plan *closure.Plan, report *fetchReport) error {
	if r.json {
		return printJSON(r.stdout, report)
	}
	printFetches(r.stdout, plan)
	fmt.Fprintf(r.stdout, "would fetch %s\n", fetchSummary(plan, "to download"))
	return nil
}

func (r *fetchRun) printResult(plan *closure.Plan, report *fetchReport) error {
	took := time.Since(r.started)
	report.Result.Seconds = took.Seconds()
	if !r.quiet {
		fmt.Fprintf(r.screen, "fetched %s, %s\n", fetchSummary(plan, "downloaded"), ui.Seconds(took))
	}
	if r.json {
		return printJSON(r.stdout, report)
	}
	return nil
}

// printFetches writes a line for each path that comes from a cache.
func printFetches(w io.Writer, plan *closure.Plan) {
	for _, offer := range plan.Fetch {
		fmt.Fprintf(w, "fetch    %10s  %s  from %s\n", ui.Bytes(offer.Download), offer.Info.Path, show.Line(offer.Cache))
	}
}

// fetchSummary counts what a plan fetches. how is "to download", or "downloaded".
func fetchSummary(plan *closure.Plan, how string) string {
	var b strings.Builder
	nar, download := plan.FetchBytes()
	fmt.Fprintf(&b, "%s of %s: ", ui.Count(len(plan.Fetch)), ui.Paths(plan.Paths()))
	if len(plan.Fetch) == 0 {
		b.WriteString("nothing " + how)
	} else {
		fmt.Fprintf(&b, "%s %s for %s", ui.Bytes(download), how, ui.Bytes(nar))
	}
	fmt.Fprintf(&b, ", %s present", ui.Count(len(plan.Present)))
	return b.String()
}

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/copy-closure/copy-closure/e2e/harness"
)

// A benchCase is one question, answered by a few rows of the table.
type benchCase struct {
	name string
	run  func(context.Context, *lab) ([]row, error)
}

const (
	farAway = 100 * time.Millisecond
	mb      = 1_000_000
	// memoryLimit is what each of our processes may use, in MiB.
	memoryLimit = 64
)

// allCases are in the order of the table.
var allCases = []benchCase{
	{"tiny-push", copyCase{
		title: "5,000 tiny paths, 100 ms, Nix there: push", source: tiny(5000), rtt: farAway,
		tools: []tool{us, nixCopyNG, brief(nixCopy)}, against: nixCopyNG.name, limit: 1.1,
	}.run},
	{"tiny-pull", copyCase{
		title: "5,000 tiny paths, 100 ms, Nix there: pull", source: tiny(5000), rtt: farAway, pull: true,
		tools: []tool{us, brief(nixCopyClosure), brief(nixCopyNG)}, atMost: 2500 * time.Millisecond,
	}.run},
	{"idle", copyCase{
		title: "5,000 paths, nothing to do, 100 ms", source: tiny(5000), rtt: farAway, present: true,
		tools: []tool{us, nixCopyClosure}, against: nixCopyClosure.name, limit: 0.8,
	}.run},
	{"ng-push", copyCase{
		title: "1,001 tiny paths in 11 levels, 100 ms, nix-daemon there: push", source: levels(1001, 10), rtt: farAway, daemon: true,
		tools: []tool{us}, atMost: 3 * time.Second,
	}.run},
	{"ng-pull", copyCase{
		title: "1,001 tiny paths in 11 levels, 100 ms, nix-daemon there: pull", source: levels(1001, 10), rtt: farAway, daemon: true, pull: true,
		tools: []tool{us}, atMost: 3 * time.Second,
	}.run},
	{"ng-pull-alone", copyCase{
		title: "1,001 tiny paths in 11 levels, 100 ms, nothing but nix-daemon there: pull", source: levels(1001, 10), rtt: farAway,
		daemon: true, forced: true, pull: true, tools: []tool{us}, atMost: 3 * time.Second,
	}.run},
	{"ng-idle", copyCase{
		title: "5,000 paths, nothing to do, 100 ms, nix-daemon there", source: tiny(5000), rtt: farAway, daemon: true, present: true,
		tools: []tool{us}, atMost: 1200 * time.Millisecond,
	}.run},
	{"round-trips", roundTrips},
	{"bootstrap", bootstrap},
	{"large-nix", copyCase{
		title: "200 packages, 1.2 GB, loopback, Nix there: push", source: packages(200, 1200*mb),
		tools: []tool{us, nixCopyClosure, nixCopyNG, tarSSH, catSSH}, against: nixCopyClosure.name, limit: 0.85,
	}.run},
	{"large-ours", copyCase{
		title: "200 packages, 1.2 GB, loopback, ours there: push", source: packages(200, 1200*mb), ours: true,
		tools: []tool{us, nixCopyClosure}, against: nixCopyClosure.name, limit: 0.6,
	}.run},
	{"small-ours", copyCase{
		title: "1,500 packages, 770 MB, loopback, ours there: push", source: packages(1500, 770*mb), ours: true,
		tools: []tool{us, nixCopyClosure, nixCopyNG, tarSSH, cpA}, against: nixCopyClosure.name, limit: 0.7,
	}.run},
	{"far-push", copyCase{
		title: "50 packages, 157 MB, 100 ms, Nix there: push", source: packages(50, 157*mb), rtt: farAway,
		tools: []tool{us, nixCopyClosure}, against: nixCopyClosure.name, limit: 0.35,
	}.run},
	{"far-pull", copyCase{
		title: "50 packages, 157 MB, 100 ms, Nix there: pull", source: packages(50, 157*mb), rtt: farAway, pull: true,
		tools: []tool{us, nixCopyClosure}, against: nixCopyClosure.name, limit: 0.25,
	}.run},
	{"far-small", copyCase{
		title: "1,500 packages, 770 MB, 100 ms, Nix there: push", source: packages(1500, 770*mb), rtt: farAway,
		tools: []tool{us, nixCopyNG, brief(nixCopyClosure)}, against: nixCopyNG.name, limit: 0.4,
	}.run},
	{"memory-file", copyCase{
		title: "a file of 2 GiB, ours there: push", source: bigFile(2 << 30), ours: true, tools: []tool{us}, memory: true,
	}.run},
	{"memory-paths", copyCase{
		title: "5,000 tiny paths, ours there: push", source: tiny(5000), ours: true, tools: []tool{us}, memory: true,
	}.run},
	{"database", database},
	{"cache-serve", cacheServe},
	{"cache-push", cachePush},
	{"fetch", fetchCase},
	{"narinfos", narInfos},
	{"both-sources", bothSources},
	{"rebuilt", copyCase{
		title: "upgrade, references changed, 450 MB, base at both ends: push", source: rebuilt(true), before: &rebuiltBefore, ours: true,
		tools: []tool{us}, wire: mb / 2,
	}.run},
	{"rebuilt-there", copyCase{
		title: "upgrade, references changed, 450 MB, base there: push", source: rebuilt(false), before: &rebuiltBefore, ours: true,
		tools: []tool{us}, wire: 3 * mb,
	}.run},
	{"rebuilt-pull", copyCase{
		title: "upgrade, references changed, 450 MB, base at both ends: pull", source: rebuilt(true), before: &rebuiltBefore, ours: true, pull: true,
		tools: []tool{us}, wire: mb / 2,
	}.run},
	{"rebuilt-here", copyCase{
		title: "upgrade, references changed, 450 MB, base here: pull", source: rebuilt(false), before: &rebuiltBefore, ours: true, pull: true,
		tools: []tool{us}, wire: 3 * mb,
	}.run},
	{"rebuilt-slow", copyCase{
		title: "upgrade, references changed, 450 MB, 20 Mbit/s, 100 ms: push", source: rebuilt(true), before: &rebuiltBefore, ours: true,
		tools: []tool{us, brief(nixCopyClosure)}, rtt: farAway, rate: slow, atMost: 6 * time.Second,
	}.run},
	{"upgraded", copyCase{
		title: "upgrade of real packages, base at both ends: push", source: upgraded(true), before: &upgradedBefore, ours: true,
		tools: []tool{us}, patches: 1,
	}.run},
	{"upgraded-there", copyCase{
		title: "upgrade of real packages, base there: push", source: upgraded(false), before: &upgradedBefore, ours: true,
		tools: []tool{us}, patches: 2.2,
	}.run},
	{"fresh-slow", copyCase{
		title: "50 packages, 157 MB, 20 Mbit/s, 100 ms, ours there: push", source: packages(50, 157*mb), ours: true,
		tools: []tool{us, tarZstd, brief(nixCopyClosure)}, rtt: farAway, rate: slow, against: tarZstd.name, limit: 1,
	}.run},
	{"far-ours", copyCase{
		title: "50 packages, 157 MB, 100 ms, ours there: push", source: packages(50, 157*mb), ours: true,
		tools: []tool{us}, rtt: farAway, atMost: 2500 * time.Millisecond,
	}.run},
	{"far-small-ours", copyCase{
		title: "1,500 packages, 770 MB, 100 ms, ours there: push", source: packages(1500, 770*mb), ours: true,
		tools: []tool{us}, rtt: farAway, atMost: 8 * time.Second,
	}.run},
	{"killed", copyCase{
		title: "a file of 1 GiB, 200 Mbit/s, ours there, connection killed 20 times: push", source: bigFile(1 << 30), ours: true,
		tools: []tool{us}, rate: 25 * mb, kills: 20, wire: 102 * (1 << 30) / 100,
	}.run},
	{"idle-ours", copyCase{
		title: "5,000 paths, nothing to do, 100 ms, ours there", source: tiny(5000), present: true, ours: true,
		tools: []tool{us}, rtt: farAway, atMost: 1100 * time.Millisecond,
	}.run},
}

func caseNames() []string {
	var names []string
	for _, c := range allCases {
		names = append(names, c.name)
	}
	return names
}

func findCase(name string) *benchCase {
	for i := range allCases {
		if allCases[i].name == name {
			return &allCases[i]
		}
	}
	return nil
}

// A recipe makes the source of a case; cases with equal names share it.
type recipe struct {
	name string
	fill filler
}

func tiny(n int) recipe {
	return recipe{fmt.Sprintf("tiny-%d", n), func(ctx context.Context, s *harness.Store) (*harness.Closure, error) {
		return harness.TinyClosure(ctx, s, n)
	}}
}

func levels(n, levels int) recipe {
	return recipe{fmt.Sprintf("levels-%d", levels), func(ctx context.Context, s *harness.Store) (*harness.Closure, error) {
		return harness.TinyLevels(ctx, s, n, levels)
	}}
}

func packages(n int, size int64) recipe {
	return recipe{fmt.Sprintf("packages-%d", n), func(ctx context.Context, s *harness.Store) (*harness.Closure, error) {
		return harness.Packages(ctx, s, n, size)
	}}
}

func bigFile(size int64) recipe {
	return recipe{fmt.Sprintf("file-%d", size), func(ctx context.Context, s *harness.Store) (*harness.Closure, error) {
		return harness.BigFile(ctx, s, size)
	}}
}

// roundTrips counts those of copies of 10 and of 5,000 paths.
func roundTrips(ctx context.Context, l *lab) ([]row, error) {
	var rows []row
	for _, direction := range []struct {
		name  string
		pull  bool
		limit float64
	}{{"push", false, 4}, {"pull", true, 5}} {
		for _, n := range []int{10, 5000} {
			trips, err := countTrips(ctx, l, n, direction.pull)
			if err != nil {
				return nil, err
			}
			rows = append(rows, row{
				name:      fmt.Sprintf("round trips after log-in, %d tiny paths, Nix there: %s", n, direction.name),
				tool:      us.name,
				value:     fmt.Sprintf("%.1f", trips),
				threshold: fmt.Sprintf("≤ %g", direction.limit),
				verdict:   verdict(trips, direction.limit+0.5), // it counts whole ones
			})
		}
	}
	return rows, nil
}

func countTrips(ctx context.Context, l *lab, n int, pull bool) (float64, error) {
	c := copyCase{source: tiny(n), pull: pull, rtt: farAway, tools: []tool{us}}
	src, err := l.source(ctx, c.source.name, c.source.fill)
	if err != nil {
		return 0, err
	}
	// One server for all runs, whose store is emptied in between.
	farStore := src.store
	if !pull {
		if farStore, err = harness.NewStore(ctx, l.file("trips")); err != nil {
			return 0, err
		}
		defer removeAll(farStore.Root)
	}
	f, err := l.startFar(farStore, c.link(), serverNix)
	if err != nil {
		return 0, err
	}
	defer f.close()
	return harness.RoundTrips(ctx, f.sshd, f.relay, max(3, l.runs), func(ctx context.Context) (time.Duration, error) {
		destination := l.file("trips")
		removeAll(destination)
		here, err := harness.NewStore(ctx, destination)
		if err != nil {
			return 0, err
		}
		if !pull {
			here = src.store
		}
		return us.time(ctx, l, trial{copyCase: &c, closure: src.Closure, source: src.store, here: here, far: f, farStore: farStore})
	})
}

// database asks for closures in a small and a large database, without contents.
func database(ctx context.Context, l *lab) ([]row, error) {
	var rows []row
	for _, q := range []struct{ all, asked int }{{5000, 5000}, {300_000, 50}} {
		store, all, err := harness.TinyDatabase(ctx, q.all)
		if err != nil {
			return nil, err
		}
		more, err := askDatabase(ctx, l, store, all.Prefix(q.asked).Roots[0])
		if err != nil {
			return nil, err
		}
		title := fmt.Sprintf("closure of %d paths of %d, without the program's start", q.asked, q.all)
		for _, r := range more {
			r.name = title
			rows = append(rows, r)
		}
	}
	return rows, nil
}

const databaseLimit = 20 * time.Millisecond

// askDatabase compares how long programs take to print a closure with how long
// they take to start and do nothing.
func askDatabase(ctx context.Context, l *lab, store *harness.Store, top string) ([]row, error) {
	ours := row{tool: us.name, threshold: "≤ 20 ms, ≤ 64 MiB"}
	stock := row{tool: "nix-store -qR"}
	for range max(l.runs, 15) { // they are short, and a difference of two is noisy
		line, err := l.measured("store", "closure", "--store", store.Root, top)
		if err != nil {
			return nil, err
		}
		idle, err := l.measured("--version")
		if err != nil {
			return nil, err
		}
		if err := addDifference(ctx, &ours, line, idle, nil); err != nil {
			return nil, err
		}
		err = addDifference(ctx, &stock, []string{"nix-store", "-qR", top}, []string{"nix-store", "--version"}, store.Env())
		if err != nil {
			return nil, err
		}
	}
	peak, err := readPeak(l.nearPeak())
	if err != nil {
		return nil, err
	}
	ours.near = peak
	ours.verdict = verdict(max(float64(harness.Median(ours.times))/float64(databaseLimit), peak/memoryLimit), 1)
	return []row{ours, stock}, nil
}

func addDifference(ctx context.Context, r *row, line, idle, env []string) error {
	full, err := timed(ctx, line, env)
	if err != nil {
		return err
	}
	start, err := timed(ctx, idle, env)
	r.times = append(r.times, full-start)
	return err
}

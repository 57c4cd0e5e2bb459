package main

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"time"

	"github.com/copy-closure/copy-closure/e2e/harness"
)

const (
	fetchMemory   = 128 // MiB
	fetchLimit    = 0.7 // times Nix's
	narInfosLimit = 1500 * time.Millisecond

	// The consumer's links of the case in which a cache has most of a closure.
	slowLink  = 20e6 / 8  // bytes a second, to the producer
	cacheLink = 200e6 / 8 // and to the cache
	cachePart = 0.8       // of the closure's bytes
	bothLimit = 1.15      // times what the rest takes alone
)

// madeCache makes a zstd cache of roots.
func (l *lab) madeCache(ctx context.Context, name string, store *harness.Store, roots []string) (string, error) {
	dir := l.file(name)
	line := append([]string{l.product, "cache", "push", "--quiet", "--store", store.Root, "--to", "file://" + dir}, roots...)
	_, err := timed(ctx, line, store.Env())
	return dir, err
}

// served serves a directory, behind a link if there is one.
func served(ctx context.Context, dir string, link *harness.Link) (address string, err error) {
	server, err := harness.ServeFiles(ctx, dir, harness.WebFaults{})
	if err != nil || link == nil {
		return server.URL, err
	}
	at, err := url.Parse(server.URL)
	if err != nil {
		return "", err
	}
	relay, err := harness.NewRelay(at.Host)
	if err != nil {
		return "", err
	}
	context.AfterFunc(ctx, func() { relay.Close() })
	relay.Set(harness.Up, *link)
	relay.Set(harness.Down, *link)
	return "http://" + relay.Addr(), nil
}

// fetchCase compares taking a closure from a cache with nix copy.
func fetchCase(ctx context.Context, l *lab) ([]row, error) {
	src, err := l.source(ctx, "packages-200", packages(200, 1200*mb).fill)
	if err != nil {
		return nil, err
	}
	dir, err := l.madeCache(ctx, "fetch-cache", src.store, src.Roots)
	if err != nil {
		return nil, err
	}
	address, err := served(ctx, dir, nil)
	if err != nil {
		return nil, err
	}
	ours := row{name: "200 packages, 1.2 GB: fetch from a zstd cache on loopback", tool: us.name}
	stock := row{name: ours.name, tool: "nix copy"}
	for range l.runs {
		line, err := l.measured(append([]string{"fetch", "--quiet", "--no-check-sigs", "--refresh", "--from-cache", address}, src.Roots...)...)
		if err != nil {
			return nil, err
		}
		if err := l.fetchOnce(ctx, &ours, line); err != nil {
			return nil, err
		}
		line = append([]string{"nix", "copy", "--no-check-sigs", "--from", address}, src.Roots...)
		if err := l.fetchOnce(ctx, &stock, line); err != nil {
			return nil, err
		}
	}
	if ours.near, err = readPeak(l.nearPeak()); err != nil {
		return nil, err
	}
	rows := []row{ours, stock}
	setRatios(rows, harness.Median(stock.times), stock.tool)
	ratio := float64(harness.Median(ours.times)) / float64(harness.Median(stock.times))
	rows[0].threshold = fmt.Sprintf("≤ %.2f × nix copy; ≤ %d MiB", fetchLimit, fetchMemory)
	rows[0].verdict = verdict(max(ratio/fetchLimit, ours.near/fetchMemory), 1)
	return rows, nil
}

// fetchOnce runs a command with a fresh store as its own.
func (l *lab) fetchOnce(ctx context.Context, r *row, line []string) error {
	dir, discard, err := l.fresh(ctx)
	if err != nil {
		return err
	}
	defer discard()
	store, err := harness.NewStore(ctx, filepath.Join(dir, "store"))
	if err != nil {
		return err
	}
	took, err := timed(ctx, line, store.Env())
	r.times = append(r.times, took)
	return err
}

// narInfos has a pull ask a cache that is far away for what the closure lacks.
func narInfos(ctx context.Context, l *lab) ([]row, error) {
	src, err := l.source(ctx, "tiny-2000", tiny(2000).fill)
	if err != nil {
		return nil, err
	}
	dir, err := l.madeCache(ctx, "tiny-cache", src.store, src.Roots)
	if err != nil {
		return nil, err
	}
	address, err := served(ctx, dir, &harness.Link{Delay: 25 * time.Millisecond})
	if err != nil {
		return nil, err
	}
	far, err := l.startFar(src.store, nil, serverNix)
	if err != nil {
		return nil, err
	}
	defer far.close()
	r := row{name: "what a closure of 2,000 paths lacks, asked of a cache 50 ms away (pull, dry run)", tool: us.name}
	flags := []string{"--dry-run", "--quiet", "--no-check-sigs", "-s", "--refresh", "--substituter", address, "--store", l.file("none"), "--from", harness.FarHost}
	line, err := l.measured(append(flags, src.Roots...)...)
	if err != nil {
		return nil, err
	}
	for range l.runs {
		took, err := timed(ctx, line, []string{"NIX_SSHOPTS=-F " + far.config})
		if err != nil {
			return nil, err
		}
		r.times = append(r.times, took)
	}
	if r.near, err = readPeak(l.nearPeak()); err != nil {
		return nil, err
	}
	r.threshold = "≤ " + seconds(narInfosLimit)
	r.verdict = verdict(float64(harness.Median(r.times)), float64(narInfosLimit))
	return []row{r}, nil
}

// bothSources pulls over a slow link what a faster cache has most of, and compares it
// with a pull of the rest alone.
func bothSources(ctx context.Context, l *lab) ([]row, error) {
	src, err := l.source(ctx, "packages-50", packages(50, 157*mb).fill)
	if err != nil {
		return nil, err
	}
	part := mostOf(src.Closure)
	dir, err := l.madeCache(ctx, "part-cache", src.store, part.Roots)
	if err != nil {
		return nil, err
	}
	address, err := served(ctx, dir, &harness.Link{Rate: cacheLink})
	if err != nil {
		return nil, err
	}
	ours := row{name: "a cache has 80 % of 157 MB: pull at 20 Mbit/s, from the cache at 200", tool: us.name}
	alone := row{name: ours.name, tool: "pull of the rest alone"}
	for range l.runs {
		if err := l.pullSlowly(ctx, &ours, src, nil, "-s", "--refresh", "--substituter", address); err != nil {
			return nil, err
		}
		if err := l.pullSlowly(ctx, &alone, src, part); err != nil {
			return nil, err
		}
	}
	rows := []row{ours, alone}
	setRatios(rows, harness.Median(alone.times), alone.tool)
	ratio := float64(harness.Median(ours.times)) / float64(harness.Median(alone.times))
	rows[0].threshold = fmt.Sprintf("≤ %.2f × the rest alone", bothLimit)
	rows[0].verdict = verdict(ratio, bothLimit)
	return rows, nil
}

// mostOf is the part of a closure that the cache has.
func mostOf(c *harness.Closure) *harness.Closure {
	var sum int64
	for i, o := range c.Paths {
		if sum += o.NarSize; float64(sum) >= cachePart*float64(c.NarSize()) {
			return c.Prefix(i + 1)
		}
	}
	return c
}

// pullSlowly pulls from a real Nix into a store that has the paths of present.
func (l *lab) pullSlowly(ctx context.Context, r *row, src *source, present *harness.Closure, flags ...string) error {
	dir, discard, err := l.fresh(ctx)
	if err != nil {
		return err
	}
	defer discard()
	here := filepath.Join(dir, "store")
	if present != nil {
		line := append([]string{l.product, "fetch", "--quiet", "--no-check-sigs", "--store", here, "--from-cache", "file://" + l.file("part-cache")}, present.Roots...)
		if _, err := timed(ctx, line, nil); err != nil {
			return err
		}
	}
	far, err := l.startFar(src.store, &harness.Link{Rate: slowLink}, serverNix)
	if err != nil {
		return err
	}
	defer far.close()
	line := append([]string{l.product, "--quiet", "--no-check-sigs", "--store", here, "--from"}, flags...)
	took, err := timed(ctx, append(append(line, harness.FarHost), src.Roots...), []string{"NIX_SSHOPTS=-F " + far.config})
	r.times = append(r.times, took)
	return err
}

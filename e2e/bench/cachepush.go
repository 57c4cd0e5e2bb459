package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/copy-closure/copy-closure/e2e/harness"
)

const (
	pushMemory    = 128  // MiB
	pushTimeLimit = 0.6  // times Nix's
	pushSizeLimit = 1.03 // times Nix's
)

// cachePush compares how long it takes to make a zstd cache in a directory, and how
// large it becomes, with nix copy.
func cachePush(ctx context.Context, l *lab) ([]row, error) {
	src, err := l.source(ctx, "packages-200", packages(200, 1200*mb).fill)
	if err != nil {
		return nil, err
	}
	ours := row{name: "200 packages, 1.2 GB: make a zstd cache", tool: us.name}
	stock := row{name: ours.name, tool: "nix copy =", ratio: "1"}
	var oursSize, stockSize int64
	for range l.runs {
		line, err := l.measured(append([]string{"cache", "push", "--quiet", "--store", src.store.Root, "--to", "file://CACHE"}, src.Roots...)...)
		if err != nil {
			return nil, err
		}
		if oursSize, err = l.makeCache(ctx, src.store, &ours, line); err != nil {
			return nil, err
		}
		line = append([]string{"nix", "copy", "--no-check-sigs", "--to", "file://CACHE?compression=zstd"}, src.Roots...)
		if stockSize, err = l.makeCache(ctx, src.store, &stock, line); err != nil {
			return nil, err
		}
	}
	if ours.near, err = readPeak(l.nearPeak()); err != nil {
		return nil, err
	}
	ratio := float64(harness.Median(ours.times)) / float64(harness.Median(stock.times))
	size := float64(oursSize) / float64(stockSize)
	ours.ratio = fmt.Sprintf("%.2f; size %.2f", ratio, size)
	ours.threshold = fmt.Sprintf("≤ %.2f; size ≤ %.2f; ≤ %d MiB", pushTimeLimit, pushSizeLimit, pushMemory)
	ours.verdict = verdict(max(ratio/pushTimeLimit, size/pushSizeLimit, ours.near/pushMemory), 1)
	return []row{ours, stock}, nil
}

// makeCache runs a command whose words have CACHE for a fresh directory, and returns
// the size of the NARs there.
func (l *lab) makeCache(ctx context.Context, store *harness.Store, r *row, line []string) (size int64, err error) {
	dir, discard, err := l.fresh(ctx)
	if err != nil {
		return 0, err
	}
	defer discard()
	words := make([]string, len(line))
	for i, word := range line {
		words[i] = strings.Replace(word, "CACHE", filepath.Join(dir, "cache"), 1)
	}
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Env = append(os.Environ(), store.Env()...)
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%s: %w: %s", r.tool, err, out)
	}
	r.times = append(r.times, time.Since(start))
	err = filepath.WalkDir(filepath.Join(dir, "cache/nar"), func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	return size, err
}

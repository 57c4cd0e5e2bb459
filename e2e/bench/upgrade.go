package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/copy-closure/copy-closure/e2e/harness"
)

// slow is a link of 20 Mbit/s, in bytes.
const slow = 20e6 / 8

// What upgrades are made of.
const (
	rebuiltPackages = 136
	rebuiltBytes    = 412 * mb
)

// tarZstd is the best that people do by hand over a slow link.
var tarZstd = tool{name: "tar, zstd -3 over ssh", line: func(t trial) ([]string, error) {
	return t.pipeline(fmt.Sprintf("| zstd -q -3 | ssh -F %s %s 'zstd -dc | tar -C %s -xf -'",
		t.far.config, harness.FarHost, t.destination()))
}}

var (
	rebuiltBefore = recipe{"rebuilt-before", func(ctx context.Context, s *harness.Store) (*harness.Closure, error) {
		return harness.Rebuilt(ctx, s, rebuiltPackages, rebuiltBytes, false)
	}}
	rebuiltAfter = recipe{"rebuilt-after", func(ctx context.Context, s *harness.Store) (*harness.Closure, error) {
		return harness.Rebuilt(ctx, s, rebuiltPackages, rebuiltBytes, true)
	}}
	upgradedBefore = recipe{"upgraded-before", func(ctx context.Context, s *harness.Store) (*harness.Closure, error) {
		return harness.Upgraded(ctx, s, false)
	}}
	upgradedAfter = recipe{"upgraded-after", func(ctx context.Context, s *harness.Store) (*harness.Closure, error) {
		return harness.Upgraded(ctx, s, true)
	}}
)

// rebuilt is an upgrade in which only references changed.
func rebuilt(baseHere bool) recipe { return upgrade(rebuiltBefore, rebuiltAfter, baseHere) }

// upgraded is an upgrade of real packages.
func upgraded(baseHere bool) recipe { return upgrade(upgradedBefore, upgradedAfter, baseHere) }

// upgrade returns a source that has the later closure, and with baseHere the earlier
// one as well.
func upgrade(before, after recipe, baseHere bool) recipe {
	if !baseHere {
		return after
	}
	return recipe{after.name + "-with-base", func(ctx context.Context, s *harness.Store) (*harness.Closure, error) {
		if _, err := before.fill(ctx, s); err != nil {
			return nil, err
		}
		return after.fill(ctx, s)
	}}
}

// patchLimit sets the bytes of zstd -3 --patch-from of each path, from the path in the
// same place of the earlier closure, against those through the link.
func (c copyCase) patchLimit(ctx context.Context, l *lab, after *source) (int64, error) {
	before, err := l.source(ctx, c.before.name, c.before.fill)
	if err != nil {
		return 0, err
	}
	if len(before.Paths) != len(after.Paths) {
		return 0, fmt.Errorf("the closures of an upgrade have %d and %d paths", len(before.Paths), len(after.Paths))
	}
	var sum int64
	for i := range after.Paths {
		n, err := l.patchSize(ctx, before.store.Physical(before.Paths[i].Path), after.store.Physical(after.Paths[i].Path))
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return int64(c.patches * float64(sum)), nil
}

// patchSize is the size of a patch between the NARs of two trees.
func (l *lab) patchSize(ctx context.Context, before, after string) (int64, error) {
	from, to, patch := l.file("patch-from"), l.file("patch-to"), l.file("patch")
	defer func() {
		for _, file := range []string{from, to, patch} {
			os.Remove(file)
		}
	}()
	script := `nix-store --dump "$1" >"$3" && nix-store --dump "$2" >"$4" && zstd -q -3 --long=31 --patch-from="$3" "$4" -o "$5"`
	if err := execute(ctx, "sh", "-c", script, "sh", before, after, from, to, patch); err != nil {
		return 0, fmt.Errorf("%s: %w", filepath.Base(after), err)
	}
	info, err := os.Stat(patch)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// wireThreshold names the limit of bytes through the link.
func (c copyCase) wireThreshold() string {
	if c.patches > 0 {
		return fmt.Sprintf("%.1f × zstd -3 --patch-from, %s", c.patches, megabytes(c.wire))
	}
	return megabytes(c.wire)
}

package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/copy-closure/copy-closure/e2e/harness"
)

// footnotes explain the marks of the table.
const footnotes = `
Ratios are of medians, to the tool marked with =. Peak memory is VmHWM in MiB of
our processes. ≈: run once, with few paths, and extrapolated.
`

// A row is a line of the table.
type row struct {
	name, tool    string
	times         []time.Duration
	wires         []int64 // bytes through the link of each run
	value         string  // instead of times, for what is not one
	ratio         string
	threshold     string
	verdict       string
	near, far     float64 // MiB; 0 is not measured
	extrapolation string
}

func (r row) markdown() string {
	median, spread := r.value, ""
	if len(r.times) > 0 {
		spread = seconds(slices.Min(r.times)) + "–" + seconds(slices.Max(r.times))
		if median == "" {
			median = seconds(harness.Median(r.times))
		}
	}
	if r.extrapolation != "" {
		median, spread = "≈ "+median, r.extrapolation
	}
	reach := r.threshold
	if reach != "" && r.verdict != "" {
		reach += ": " + r.verdict
	}
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s |", r.name, r.tool, median, spread, r.ratio, reach, r.memory())
}

func (r row) memory() string {
	switch {
	case r.near > 0 && r.far > 0:
		return fmt.Sprintf("%.0f, %.0f", r.near, r.far)
	case r.near > 0:
		return fmt.Sprintf("%.0f", r.near)
	}
	return ""
}

// setWire makes the bytes through the link the value of a row.
func (r *row) setWire(threshold string, limit int64) {
	wires := slices.Sorted(slices.Values(r.wires))
	median := wires[len(wires)/2]
	r.value = megabytes(median)
	r.threshold, r.verdict = threshold, verdict(float64(median), float64(limit))
}

func megabytes(n int64) string { return fmt.Sprintf("%.2f MB", float64(n)/1e6) }

func seconds(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%.1f ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

// verdict says whether a number is within its limit.
func verdict(got, limit float64) string {
	if got <= limit {
		return "reached"
	}
	return "**missed**"
}

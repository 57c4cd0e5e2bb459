// Package ui draws what happens on a terminal, and writes the same as plain lines
// where there is none. Nothing waits for it.
package ui

import (
	"fmt"
	"strconv"
	"time"
)

// Bytes prints a size for people: three digits and a binary unit.
func Bytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n), -1
	for f >= 1023.5 {
		f /= 1024
		unit++
	}
	if f < 9.95 {
		return fmt.Sprintf("%.1f %ciB", f, units[unit])
	}
	return fmt.Sprintf("%.0f %ciB", f, units[unit])
}

// Count prints a number with its thousands set apart.
func Count(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Paths prints a number of paths.
func Paths(n int) string { return plural(n, "path", "paths") }

// Directories prints a number of directories.
func Directories(n int) string { return plural(n, "directory", "directories") }

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return Count(n) + " " + many
}

// Seconds prints a duration with a precision that people care for.
func Seconds(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	d = d.Round(time.Second)
	if d < time.Hour {
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
}

package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/show"
	"github.com/copy-closure/copy-closure/internal/ui"
)

// A copyReport is what --json prints: the plan, and the result unless it was a dry
// run. Field names are part of the command line's contract.
type copyReport struct {
	Host   string     `json:"host"`
	Pull   bool       `json:"pull"`
	DryRun bool       `json:"dryRun"`
	Plan   planReport `json:"plan"`

	Forecast *forecastReport `json:"forecast,omitempty"` // of a dry run
	Result   *copyResult     `json:"result,omitempty"`
}

type forecastReport struct {
	Bytes     int64   `json:"bytes"` // to send: NARs and deltas, before compression
	About     bool    `json:"about"` // estimated in part
	Need      int64   `json:"neededBytes"`
	Free      *int64  `json:"freeBytes,omitempty"` // at the destination, where that is known
	PerSecond int64   `json:"bytesPerSecond,omitempty"`
	Seconds   float64 `json:"seconds,omitempty"`
}

// report is what --json prints of a forecast.
func (f *forecast) report() *forecastReport {
	report := &forecastReport{Bytes: f.bytes, About: f.about, Need: f.need, PerSecond: f.rate, Seconds: f.took().Seconds()}
	if f.room != nil {
		report.Free = &f.room.Bytes
	}
	return report
}

type planReport struct {
	Roots      []nix.StorePath `json:"roots"`
	Present    []nix.StorePath `json:"present"`
	Substitute []nix.StorePath `json:"substitute"`
	Unknown    []pathReport    `json:"unknown"` // substituted or sent
	Send       []pathReport    `json:"send"`
	SendBytes  int64           `json:"sendBytes"` // of NARs
	Fetch      []fetchedReport `json:"fetch"`     // from caches, by whoever receives
}

type fetchedReport struct {
	pathReport
	Cache    string `json:"cache"`
	Download int64  `json:"downloadBytes"`
}

type pathReport struct {
	Path  nix.StorePath `json:"path"`
	Bytes int64         `json:"narBytes"`
	Delta *deltaReport  `json:"delta,omitempty"` // sent in its place
}

type deltaReport struct {
	Base  nix.StorePath `json:"base"`
	Bytes int64         `json:"bytes"`
	About bool          `json:"about"` // estimated
}

// tellDeltas adds what would be sent in place of paths.
func (r *planReport) tellDeltas(f *forecast) {
	for i, path := range r.Send {
		if d, ok := f.deltas[path.Path]; ok {
			r.Send[i].Delta = &deltaReport{d.base, d.bytes, d.about}
		}
	}
}

type copyResult struct {
	Sent       int      `json:"sent"`
	SentBytes  int64    `json:"sentBytes"` // of NARs
	LinkBytes  int64    `json:"linkBytes"` // that crossed for all of it, in the direction of the copy
	Fetched    int      `json:"fetched"`   // from caches, at this end
	RoundTrips int      `json:"roundTrips"`
	Seconds    float64  `json:"seconds"`
	Generation int      `json:"generation,omitempty"` // of --profile, where it is known
	Roots      []string `json:"gcRoots,omitempty"`
}

func reportPlan(plan *closure.Plan) planReport {
	return planReport{
		Roots:      orEmpty(plan.Roots),
		Present:    orEmpty(plan.Present),
		Substitute: orEmpty(plan.Substitute),
		Unknown:    reportPaths(plan.Unknown),
		Send:       reportPaths(plan.Send),
		SendBytes:  plan.SendBytes(),
		Fetch:      reportFetches(plan.Fetch),
	}
}

func reportFetches(offers []closure.Offer) []fetchedReport {
	list := make([]fetchedReport, len(offers))
	for i, offer := range offers {
		list[i] = fetchedReport{pathReport{Path: offer.Info.Path, Bytes: offer.Info.NARSize}, offer.Cache, offer.Download}
	}
	return list
}

// orEmpty makes nil an empty list in JSON.
func orEmpty(paths []nix.StorePath) []nix.StorePath {
	if paths == nil {
		return []nix.StorePath{}
	}
	return paths
}

func reportPaths(infos []*nix.PathInfo) []pathReport {
	list := make([]pathReport, len(infos))
	for i, info := range infos {
		list[i] = pathReport{Path: info.Path, Bytes: info.NARSize}
	}
	return list
}

func printJSON(w io.Writer, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		_, err = w.Write(append(show.JSON(text), '\n'))
	}
	return err
}

// printPlan writes the plan of a dry run, a line for each path that would move.
func printPlan(w io.Writer, plan *closure.Plan, foreseen *forecast, summary string) {
	for _, info := range plan.Send {
		if d, ok := foreseen.deltas[info.Path]; ok {
			fmt.Fprintf(w, "delta    %10s  %s  of %s, against %s\n", d.size(), info.Path, ui.Bytes(info.NARSize), d.base)
			continue
		}
		fmt.Fprintf(w, "send     %10s  %s\n", ui.Bytes(info.NARSize), info.Path)
	}
	for _, p := range plan.Substitute {
		fmt.Fprintf(w, "substitute          %s\n", p)
	}
	for _, info := range plan.Unknown {
		fmt.Fprintf(w, "unknown  %10s  %s\n", ui.Bytes(info.NARSize), info.Path)
	}
	printFetches(w, plan)
	fmt.Fprintln(w, summary)
	for _, line := range foreseen.sentences() {
		fmt.Fprintln(w, line)
	}
}

// planSummary tells the totals of a plan.
func planSummary(plan *closure.Plan, verb, host string) string {
	var b strings.Builder
	bytes := "nothing"
	if len(plan.Send) > 0 {
		bytes = ui.Bytes(plan.SendBytes())
	}
	fmt.Fprintf(&b, "would %s %s of %s %s: %s to send, %s present", verb, ui.Count(len(plan.Send)+len(plan.Fetch)),
		ui.Paths(plan.Paths()), host, bytes, ui.Count(len(plan.Present)))
	if n := len(plan.Fetch); n > 0 {
		_, download := plan.FetchBytes()
		fmt.Fprintf(&b, ", %s from caches (%s to download)", ui.Count(n), ui.Bytes(download))
	}
	if n := len(plan.Substitute); n > 0 {
		fmt.Fprintf(&b, ", %s to substitute there", ui.Count(n))
	}
	if n := len(plan.Unknown); n > 0 {
		fmt.Fprintf(&b, ", %s unknown (%s: substituted where a cache has them, else sent)", ui.Count(n), ui.Bytes(plan.UnknownBytes()))
	}
	return b.String()
}

// truth is the last line of a copy, for which so many bytes have crossed the link.
func truth(plan *closure.Plan, past, host string, link int64, roundTrips int, took time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s of %s %s: ", past, ui.Count(len(plan.Send)+len(plan.Fetch)), ui.Paths(plan.Paths()), host)
	if len(plan.Send) == 0 {
		b.WriteString("nothing to send")
	} else {
		b.WriteString(sentFor(link, plan.SendBytes()))
	}
	if n := len(plan.Fetch); n > 0 {
		_, download := plan.FetchBytes()
		fmt.Fprintf(&b, ", %s from caches (%s downloaded)", ui.Count(n), ui.Bytes(download))
	}
	if n := len(plan.Substitute); n > 0 {
		fmt.Fprintf(&b, ", %s substituted there", ui.Count(n))
	}
	fmt.Fprintf(&b, ", %s present, %d round trips, %s", ui.Count(len(plan.Present)), roundTrips, ui.Seconds(took))
	return b.String()
}

// sentFor tells what NARs have cost on the link, and what they have, where that differs
// by more than what goes with them.
func sentFor(link, nars int64) string {
	const framing = 0.03
	text := ui.Bytes(link) + " sent"
	if differ := math.Abs(float64(link - nars)); differ > framing*float64(nars) {
		text += " for " + ui.Bytes(nars)
	}
	return text
}

package cli

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/planpage"
	"github.com/copy-closure/copy-closure/internal/show"
)

// planCommand is a dry run that can draw what it finds.
func (p *program) planCommand() *cli.Command {
	return &cli.Command{
		Name:      "plan",
		ArgsUsage: "--to|--from HOST PATH…",
		Usage:     "print what a copy would do, how long it would take and what room it needs, and change nothing",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "html", Usage: "write the plan as a page for a browser to `FILE`"},
		}, copyFlags()...),
		Action: func(c *cli.Context) error {
			if err := p.setOutput(c); err != nil {
				return err
			}
			request, err := p.copyRequest(c, false)
			if err != nil {
				return err
			}
			request.terms.DryRun = true
			request.thorough = true
			request.html = c.String("html")
			return p.runCopy(c.Context, request)
		},
	}
}

// writePage writes the plan for a browser.
func (r *copyRun) writePage(all *closure.Closure, plan *closure.Plan, foreseen *forecast) error {
	summary := append([]string{planSummary(plan, r.verb(), r.there())}, foreseen.sentences()...)
	page := planpage.Page{
		Title:   fmt.Sprintf("%s %s", r.verb(), r.there()),
		Summary: strings.Join(summary, "; "),
	}
	add := func(from planpage.Origin, p nix.StorePath, detail string) {
		path := planpage.Path{Path: p, From: from, Detail: detail}
		if info := all.Info(p); info != nil {
			path.Bytes = info.NARSize
		}
		page.Paths = append(page.Paths, path)
	}
	for _, p := range plan.Present {
		add(planpage.Present, p, "")
	}
	for _, p := range plan.Substitute {
		add(planpage.Substitute, p, "")
	}
	for _, offer := range plan.Fetch {
		add(planpage.Substitute, offer.Info.Path, show.Line(offer.Cache))
	}
	for _, info := range plan.Unknown {
		add(planpage.Unknown, info.Path, "")
	}
	for _, info := range plan.Send {
		if d, ok := foreseen.deltas[info.Path]; ok {
			add(planpage.Delta, info.Path, d.size()+" against "+d.base.String())
			continue
		}
		add(planpage.Send, info.Path, "")
	}
	var text bytes.Buffer
	if err := planpage.Write(&text, page); err != nil {
		return err
	}
	return os.WriteFile(r.html, text.Bytes(), 0o666&^r.umask)
}

// Package planpage draws the plan of a copy as a page for a browser: one file that
// loads nothing from elsewhere, with a treemap of the closure and a table.
package planpage

import (
	"cmp"
	_ "embed"
	"html/template"
	"io"
	"slices"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/ui"
)

// A Page is a plan to be drawn.
type Page struct {
	Title   string
	Summary string // the totals, in a sentence
	Paths   []Path
}

// A Path is a part of the closure.
type Path struct {
	Path   nix.StorePath
	Bytes  int64  // of the NAR; 0 if not known
	From   Origin // where the destination has it from
	Detail string // about the origin: a cache, a base; may be empty
}

// An Origin is where the destination has a path from.
type Origin string

// Origins, in the order of the legend.
const (
	Present    Origin = "present"
	Substitute Origin = "substitute"
	Delta      Origin = "delta"
	Send       Origin = "send"
	Unknown    Origin = "unknown"
)

var origins = []Origin{Present, Substitute, Delta, Send, Unknown}

// Size of the treemap in the units of its drawing. Tiles narrower than one of them are
// not drawn; labels need room.
const (
	mapWidth, mapHeight = 1200, 600
	smallestTile        = 1
	labelWidth          = 60
	labelHeight         = 16
	letterWidth         = 6.5
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"bytes": ui.Bytes,
	"count": ui.Count,
}).Parse(pageText))

// Write writes p as HTML.
func Write(w io.Writer, p Page) error {
	paths := slices.Clone(p.Paths)
	slices.SortStableFunc(paths, func(a, b Path) int { return cmp.Compare(b.Bytes, a.Bytes) })
	return pageTemplate.Execute(w, view{
		Page:   Page{p.Title, p.Summary, paths},
		Legend: legend(paths),
		Tiles:  tiles(paths),
		Width:  mapWidth,
		Height: mapHeight,
	})
}

// A view is what the template draws.
type view struct {
	Page
	Legend        []share
	Tiles         []drawnTile
	Width, Height int
}

// A share is what one origin provides.
type share struct {
	From  Origin
	Paths int
	Bytes int64
}

func legend(paths []Path) []share {
	var shares []share
	for _, from := range origins {
		s := share{From: from}
		for _, p := range paths {
			if p.From == from {
				s.Paths++
				s.Bytes += p.Bytes
			}
		}
		if s.Paths > 0 {
			shares = append(shares, s)
		}
	}
	return shares
}

// A drawnTile stands for a path.
type drawnTile struct {
	tile
	Path
	Label string
}

// tiles draws paths, which are sorted by size.
func tiles(paths []Path) []drawnTile {
	var weights []float64
	for _, p := range paths {
		if p.Bytes > 0 {
			weights = append(weights, float64(p.Bytes))
		}
	}
	if len(weights) == 0 {
		return nil
	}
	var drawn []drawnTile
	for _, t := range treemap(weights, mapWidth, mapHeight) {
		if t.W < smallestTile || t.H < smallestTile {
			continue
		}
		p := paths[t.Index]
		drawn = append(drawn, drawnTile{t, p, label(p.Path.Name(), t)})
	}
	return drawn
}

// label is as much of a name as fits into a tile.
func label(name string, t tile) string {
	if t.W < labelWidth || t.H < labelHeight {
		return ""
	}
	letters := int(t.W/letterWidth) - 1
	if letters >= len(name) {
		return name
	}
	return strings.TrimRight(name[:letters-1], "-.") + "…"
}

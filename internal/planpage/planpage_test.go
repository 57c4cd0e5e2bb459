package planpage

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nix"
)

func TestTreemap(t *testing.T) {
	weights := []float64{600, 600, 400, 300, 200, 200, 100, 1, 0.5}
	tiles := treemap(weights, 600, 400)
	if len(tiles) != len(weights) {
		t.Fatalf("%d tiles for %d weights", len(tiles), len(weights))
	}
	var sum float64
	for _, weight := range weights {
		sum += weight
	}
	for i, a := range tiles {
		if want := weights[a.Index] / sum * 600 * 400; math.Abs(a.W*a.H-want) > 1e-6*want {
			t.Errorf("tile %d has an area of %g, want %g", i, a.W*a.H, want)
		}
		if a.X < -1e-9 || a.Y < -1e-9 || a.X+a.W > 600+1e-6 || a.Y+a.H > 400+1e-6 {
			t.Errorf("tile %d lies outside: %+v", i, a)
		}
		for j, b := range tiles[:i] {
			if a.X+1e-6 < b.X+b.W && b.X+1e-6 < a.X+a.W && a.Y+1e-6 < b.Y+b.H && b.Y+1e-6 < a.Y+a.H {
				t.Errorf("tiles %d and %d overlap: %+v %+v", i, j, a, b)
			}
		}
	}
}

func TestWrite(t *testing.T) {
	var paths []Path
	for i := range 300 {
		p, err := nix.DefaultStoreDir.ParseBase(fmt.Sprintf("%032d-package-%d", i, i))
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, Path{Path: p, Bytes: int64(i) << 20, From: origins[i%len(origins)], Detail: "<b>from</b>"})
	}
	var b strings.Builder
	if err := Write(&b, Page{Title: "push to <web1>", Summary: "all", Paths: paths}); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for _, want := range []string{"push to &lt;web1&gt;", paths[299].Path.String(), "&lt;b&gt;from", `class="delta"`, "<text", "299 MiB"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, no := range []string{"<b>", "<script", "http://", "https://", "ZgotmplZ"} {
		if strings.Contains(page, no) {
			t.Errorf("the page holds %q", no)
		}
	}
}

func TestWriteEmpty(t *testing.T) {
	var b strings.Builder
	if err := Write(&b, Page{Title: "nothing"}); err != nil || strings.Contains(b.String(), "<svg") {
		t.Errorf("%v\n%s", err, b.String())
	}
}

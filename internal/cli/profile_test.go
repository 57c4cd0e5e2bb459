package cli

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/internal/nix"
)

func TestParseGenerations(t *testing.T) {
	path, _, err := nix.DefaultStoreDir.Split("/nix/store/" + strings.Repeat("0", 32) + "-x")
	if err != nil {
		t.Fatal(err)
	}
	text := "Welcome!\n@10 7 true " + path.String() + "\n@other-3 6 false " + path.String() +
		"\n@2 5 false /etc\n@-1 5 false /x\n@3 soon false /x\n@4 4\n@\n"
	want := []generation{{Number: 2, Made: 5}, {Number: 10, Path: path, Made: 7, Current: true}}
	got := parseGenerations(text)
	if d := cmp.Diff(got, want, cmp.Comparer(func(a, b nix.StorePath) bool { return a == b })); d != "" {
		t.Errorf("generations (-got +want):\n%s", d)
	}
}

func TestChooseGeneration(t *testing.T) {
	three := []generation{{Number: 1}, {Number: 4, Current: true}, {Number: 7}}
	for _, c := range []struct {
		all    []generation
		number int
		wanted bool
		want   int // 0: an error
	}{
		{three, 0, false, 1},
		{three, 7, true, 7},
		{three, 4, true, 4},
		{three, 0, true, 0},
		{three, 2, true, 0},
		{three[1:], 0, false, 0}, // it is the oldest
		{three[2:], 0, false, 0}, // there is no current one
		{nil, 0, false, 0},
	} {
		g, err := chooseGeneration(c.all, c.number, c.wanted)
		if g.Number != c.want || (err == nil) != (c.want > 0) {
			t.Errorf("of %v, %d (%t): %d, %v; want %d", c.all, c.number, c.wanted, g.Number, err, c.want)
		}
	}
}

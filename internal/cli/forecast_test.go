package cli

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/remote"
)

// somePaths are path infos with the given sizes, and deltas for all of them.
func somePaths(t *testing.T, sizes ...int64) (*deltas, []*nix.PathInfo) {
	t.Helper()
	d := &deltas{bases: make(map[nix.StorePath]remote.Base)}
	var infos []*nix.PathInfo
	for i, size := range sizes {
		p, err := nix.DefaultStoreDir.ParseBase(fmt.Sprintf("%032d-new", i))
		if err != nil {
			t.Fatal(err)
		}
		base, err := nix.DefaultStoreDir.ParseBase(fmt.Sprintf("%032d-old", i))
		if err != nil {
			t.Fatal(err)
		}
		infos = append(infos, &nix.PathInfo{Path: p, NARSize: size})
		d.bases[p] = remote.Base{Path: base}
	}
	return d, infos
}

func TestEstimate(t *testing.T) {
	cases := []struct {
		name     string
		computed []int64 // of NARs of 1000, 2000 and 4000 bytes
		want     []int64 // 0: whole
		about    []bool
	}{
		{"all computed", []int64{10, 20, 30}, []int64{10, 20, 30}, []bool{false, false, false}},
		{"as the rest shrinks", []int64{100, 200, notComputed}, []int64{100, 200, 400}, []bool{false, false, true}},
		{"none computed", []int64{notComputed, notComputed, notComputed}, []int64{1000, 2000, 4000}, []bool{true, true, true}},
		{"no shorter", []int64{1000, 1000, notComputed}, []int64{0, 1000, 2666}, []bool{false, false, true}},
	}
	for _, c := range cases {
		d, infos := somePaths(t, 1000, 2000, 4000)
		got := estimate(infos, c.computed, func(p nix.StorePath) nix.StorePath { return d.bases[p].Path })
		for i, info := range infos {
			foreseen := got[info.Path]
			if foreseen.bytes != c.want[i] || foreseen.about != c.about[i] {
				t.Errorf("%s: path %d: %d bytes, about: %t; want %d, %t", c.name, i, foreseen.bytes, foreseen.about, c.want[i], c.about[i])
			}
			if foreseen.bytes > 0 && foreseen.base != d.bases[info.Path].Path {
				t.Errorf("%s: path %d is against %s", c.name, i, foreseen.base)
			}
		}
	}
}

func TestSomeSigned(t *testing.T) {
	d, infos := somePaths(t, 1000, forecastSigned-1, 1, 1)
	d.here = map[nix.StorePath]*nix.PathInfo{d.bases[infos[0].Path].Path: infos[0]}
	if got := d.someSigned(infos); !slices.Equal(got, infos[1:3]) {
		t.Errorf("signatures of %d bases are asked for, want those of the second and third path", len(got))
	}
}

func TestCountingWriter(t *testing.T) {
	c := &countingWriter{most: 10}
	for range 3 {
		if n, err := c.Write(make([]byte, 3)); n != 3 || err != nil {
			t.Fatal(n, err)
		}
	}
	if _, err := c.Write(make([]byte, 1)); !errors.Is(err, errNoShorter) {
		t.Errorf("a delta as long as its path: %v", err)
	}
}

func TestForecastSentences(t *testing.T) {
	_, infos := somePaths(t, 1)
	cases := []struct {
		f    forecast
		want []string
	}{
		{forecast{need: 10}, nil},
		{forecast{bytes: 4096, about: true, deltas: map[nix.StorePath]foreseenDelta{infos[0].Path: {}}, need: 8192, room: &remote.Room{Bytes: 4096}}, []string{
			"1 path as deltas: ~4.0 KiB to send in all",
			"takes about 8.0 KiB at the destination, where 4.0 KiB are free: it does not fit",
		}},
		{forecast{bytes: 10 << 20, rate: 1 << 20}, []string{"about 10.0 s at the 1.0 MiB/s of one session, before compression"}},
	}
	for _, c := range cases {
		if got := c.f.sentences(); !slices.Equal(got, c.want) {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

package delta_test

import (
	"testing"
	"time"

	"github.com/copy-closure/copy-closure/internal/delta"
)

func TestChoose(t *testing.T) {
	day := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	bases := delta.NewBases([]delta.Candidate{
		{Path: parse(t, "1", "glibc-2.37")},
		{Path: parse(t, "2", "glibc-2.37"), Registered: day},
		{Path: parse(t, "3", "glibc-2.37-bin"), Here: true},
		{Path: parse(t, "4", "glibc-2.38"), Registered: day.Add(time.Hour)},
		{Path: parse(t, "5", "openssl-3.0.8.drv")},
		{Path: parse(t, "6", "openssl-3.0.9")},
		{Path: parse(t, "7", "openssl-1.1")},
		{Path: parse(t, "8", "zlib-1.2"), Registered: day},
		{Path: parse(t, "9", "zlib-1.2"), Here: true},
		{Path: parse(t, "a", "nixos-system-web1-23.05"), Files: []string{"a", "b", "c"}},
		{Path: parse(t, "b", "etc"), Files: []string{"a", "b", "x", "y"}},
	})
	for _, c := range []struct {
		what, name string
		files      []string
		want       string // first digit; empty for none
	}{
		{"same name, registered last", "glibc-2.37", nil, "2"},
		{"another output is no version", "glibc-2.39-bin", nil, "3"},
		{"other version, most alike", "glibc-2.380", nil, "4"},
		{"derivations apart", "openssl-3.0.10.drv", nil, "5"},
		{"nearest version", "openssl-3.0.10", nil, "6"},
		{"the sender's first", "zlib-1.2", nil, "9"},
		{"the sender's first, other version", "zlib-1.3", nil, "9"},
		{"most files", "unit-x", []string{"a", "b", "x"}, "b"},
		{"too few files", "unit-x", []string{"a", "p", "q"}, ""},
		{"files not known", "unit-x", nil, ""},
		{"other words", "glibc-locales-2.37", nil, ""},
	} {
		got, ok := bases.Choose(parse(t, "0", c.name), c.files)
		if ok != (c.want != "") || ok && got.HashPart()[:1] != c.want {
			t.Errorf("%s: chose %v for %s, want %q", c.what, got, c.name, c.want)
		}
	}
	if got, _ := bases.Choose(parse(t, "2", "glibc-2.37"), nil); got != parse(t, "1", "glibc-2.37") {
		t.Errorf("chose %v for a path that is a candidate itself", got)
	}
}

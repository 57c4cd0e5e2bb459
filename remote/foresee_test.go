package remote_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/internal/wire"
	"github.com/copy-closure/copy-closure/remote"
)

// A searcher is a substituter that says what its caches have.
type searcher struct {
	cached []remote.CachedPath
	err    error
}

func (s searcher) Substitute(context.Context, []nix.StorePath) error {
	return errors.New("nothing is to be substituted")
}

func (s searcher) Search(context.Context, []nix.StorePath) ([]remote.CachedPath, error) {
	return s.cached, s.err
}

func TestForesee(t *testing.T) {
	c := nixtest.Chain(3)
	cached := []remote.CachedPath{
		{Path: c[1].Info.Path, NARHash: c[1].Info.NARHash, Download: 17, Cache: "https://cache.example.org"},
		{Path: c[0].Info.Path, NARHash: c[0].Info.NARHash, Download: 0, Cache: "file:///srv/cache"},
	}
	foreign := nixtest.Chain(9)[8].Info
	for _, test := range []struct {
		name   string
		caches searcher
		want   []remote.CachedPath
		err    string
	}{
		{name: "some", caches: searcher{cached: cached}, want: cached},
		{name: "none"},
		{name: "broken", caches: searcher{cached: cached, err: errors.New("no configuration")}},
		{name: "twice", caches: searcher{cached: append(cached, cached[0])}, err: "came before"},
		{name: "not asked for", caches: searcher{cached: []remote.CachedPath{{Path: foreign.Path, NARHash: foreign.NARHash}}}, err: "not asked for"},
		{name: "no size", caches: searcher{cached: []remote.CachedPath{{Path: c[0].Info.Path, NARHash: c[0].Info.NARHash, Download: -1}}}, err: "what a cache has of"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newPeerHost(t, nixtest.NewStore())
			h.options.Substituter, h.options.Foresees = test.caches, true
			s := h.open(t)
			if s.Foresees() {
				t.Error("it is known before the first answer")
			}
			if err := s.Greet(t.Context()); err != nil || !s.Foresees() {
				t.Fatalf("it cannot be asked: %v", err)
			}
			got, err := s.Foresee(t.Context(), c.Paths())
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("error is %v, want %s", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, cmp.Comparer(func(a, b remote.CachedPath) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
			if valid, err := s.ValidPaths(t.Context(), c.Paths(), false, false); err != nil || len(valid) > 0 {
				t.Errorf("afterwards %v are valid, %v", valid, err)
			}
		})
	}
}

// TestForeseeNotOffered asks servers that have not said that they know the request.
func TestForeseeNotOffered(t *testing.T) {
	h := newPeerHost(t, nixtest.NewStore())
	h.options.Substituter = searcher{}
	s := h.open(t)
	if err := s.Greet(t.Context()); err != nil || s.Foresees() {
		t.Fatalf("it can be asked (%v)", err)
	}
	if _, err := s.Foresee(t.Context(), nixtest.Chain(1).Paths()); err == nil {
		t.Error("it answers all the same")
	}
	if err := <-h.ended; err == nil || !strings.Contains(err.Error(), "which was not offered") {
		t.Errorf("the server ends with %v", err)
	}
}

// TestForeseeLongName has a cache whose name is longer than any that a server sends.
func TestForeseeLongName(t *testing.T) {
	near, far := nixtest.Pipe()
	defer far.Close()
	c := nixtest.Chain(1)
	fmt.Fprintln(far, "@copy-closure-peer 1 foresees")
	w := wire.NewWriter(far)
	w.Uint64(0x5452eecb)
	w.Uint64(2<<8 | 7)
	w.Path(c[0].Info.Path)
	w.String(c[0].Info.NARHash.String())
	w.Uint64(1)
	w.String(strings.Repeat("x", 4097))
	w.String("")
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	s, err := remote.Open(t.Context(), hostOf{near}, remote.FarEnd{}, remote.Options{StoreDir: nixtest.Dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Foresee(t.Context(), c.Paths()); err == nil || !strings.Contains(err.Error(), "4097") {
		t.Errorf("error is %v", err)
	}
}

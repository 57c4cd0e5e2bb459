package substitute_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/substitute"
)

// countingFiles counts what is opened, and can fail.
type countingFiles struct {
	substitute.Files
	opened atomic.Int32
	fail   error
}

func (f *countingFiles) Open(ctx context.Context, name string, offset int64) (io.ReadCloser, error) {
	f.opened.Add(1)
	if f.fail != nil && strings.HasSuffix(name, ".narinfo") {
		return nil, f.fail
	}
	return f.Files.Open(ctx, name, offset)
}

func found(hits []substitute.Hit) []nix.StorePath {
	var paths []nix.StorePath
	for _, h := range hits {
		paths = append(paths, h.Path)
	}
	slices.SortFunc(paths, nix.StorePath.Compare)
	return paths
}

func sorted(paths []nix.StorePath) []nix.StorePath {
	paths = slices.Clone(paths)
	slices.SortFunc(paths, nix.StorePath.Compare)
	return paths
}

func TestFindOrder(t *testing.T) {
	c := nixtest.Random(1, 400)
	late, early := makeCache(t, c), makeCache(t, c[:100])
	late.Priority, early.Priority = 30, 10
	s := &substitute.Substituters{Caches: []*substitute.Cache{late, early}}
	hits, err := s.Find(t.Context(), c.Paths())
	if err != nil || !slices.Equal(found(hits), sorted(c.Paths())) {
		t.Fatalf("%d paths of %d, %v", len(hits), len(c), err)
	}
	fromEarly := 0
	for _, h := range hits {
		if h.Cache == early {
			fromEarly++
		}
	}
	if fromEarly != 100 {
		t.Errorf("%d paths from the cache that comes first, want 100", fromEarly)
	}
}

func TestClosureStopsAtPresent(t *testing.T) {
	c := nixtest.Chain(50)
	s := &substitute.Substituters{Caches: []*substitute.Cache{makeCache(t, c)}}
	hits, err := s.Closure(t.Context(), []nix.StorePath{c.Top()}, func(p nix.StorePath) bool { return p == c[19].Info.Path })
	if err != nil || !slices.Equal(found(hits), sorted(c[20:].Paths())) {
		t.Errorf("%d paths, %v; want the 30 above the present one", len(hits), err)
	}
}

func TestDeadCache(t *testing.T) {
	c := nixtest.Chain(20)
	dead := makeCache(t, c)
	dead.Files = &countingFiles{Files: dead.Files, fail: errors.New("connection lost")}
	none := &substitute.Cache{Files: substitute.Dir(t.TempDir()), StoreDir: nixtest.Dir}
	var log bytes.Buffer
	s := &substitute.Substituters{
		Caches: []*substitute.Cache{dead, none, makeCache(t, c)},
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	}
	hits, err := s.Find(t.Context(), c.Paths())
	if err != nil || len(hits) != len(c) {
		t.Errorf("%d paths of %d, %v", len(hits), len(c), err)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 2 {
		t.Errorf("%d warnings, want one for each cache that is of no use:\n%s", n, &log)
	}
}

func TestRefusal(t *testing.T) {
	c := nixtest.Chain(1)
	picky := makeCache(t, c)
	picky.Accept = func(*nix.PathInfo) error { return nix.ErrNotTrusted }
	s := &substitute.Substituters{Caches: []*substitute.Cache{picky}}
	if hits, err := s.Find(t.Context(), c.Paths()); len(hits) > 0 || err != nil {
		t.Errorf("found %d, %v", len(hits), err)
	}
	if err := s.Refusal(c.Top()); !errors.Is(err, nix.ErrNotTrusted) {
		t.Errorf("refusal: %v", err)
	}
}

// TestInstead reads a path whose first cache has lost the file.
func TestInstead(t *testing.T) {
	c := nixtest.Chain(1)
	lossy, sound := makeCache(t, c), makeCache(t, c)
	s := &substitute.Substituters{Caches: []*substitute.Cache{lossy, sound}}
	hits, err := s.Find(t.Context(), c.Paths())
	if err != nil || len(hits) != 1 || hits[0].Cache != lossy {
		t.Fatal(hits, err)
	}
	other, ok := s.Instead(t.Context(), hits[0])
	if !ok || other.Cache != sound {
		t.Errorf("got %v, %v", other, ok)
	}
	if _, ok := s.Instead(t.Context(), other); ok {
		t.Error("there is a third cache")
	}
}

func TestMemory(t *testing.T) {
	c := nixtest.Chain(30)
	cache, dir := makeCache(t, c[:20]), t.TempDir()
	files := &countingFiles{Files: cache.Files}
	find := func(refresh bool) ([]substitute.Hit, *substitute.Substituters) {
		files.opened.Store(0)
		s := &substitute.Substituters{
			Caches: []*substitute.Cache{{Files: files, StoreDir: nixtest.Dir}},
			Memory: &substitute.Memory{Dir: dir, Refresh: refresh},
		}
		hits, err := s.Find(t.Context(), c.Paths())
		if err != nil {
			t.Fatal(err)
		}
		return hits, s
	}
	for i, want := range []struct {
		refresh bool
		hits    int
		opened  int32
	}{
		{false, 20, 31}, // nix-cache-info and all paths
		{false, 20, 11}, // those that were not there are asked for again
		{true, 20, 31},
	} {
		hits, _ := find(want.refresh)
		if len(hits) != want.hits || files.opened.Load() != want.opened {
			t.Errorf("run %d: %d hits, %d files; want %d and %d", i, len(hits), files.opened.Load(), want.hits, want.opened)
		}
	}
	// A file that is written while the process dies is taken up to there.
	entries, _ := os.ReadDir(dir)
	name := filepath.Join(dir, entries[0].Name())
	info, _ := os.Stat(name)
	if err := os.Truncate(name, info.Size()-10); err != nil {
		t.Fatal(err)
	}
	if hits, _ := find(false); len(hits) != 20 {
		t.Errorf("%d hits beside a damaged memory", len(hits))
	}
	// What is remembered and wrong is asked for again.
	find(false)
	hits, s := find(false)
	other, ok := s.Instead(t.Context(), hits[0])
	if ok {
		t.Errorf("instead of %s there is the same file: %s", hits[0].URL, other.URL)
	}
	if info, _ := os.Stat(name); info.Size() > 0 {
		t.Error("the memory that was wrong is still there")
	}
}

func TestFindEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := nixtest.Chain(5)
	s := &substitute.Substituters{Caches: []*substitute.Cache{makeCache(t, c)}}
	if _, err := s.Find(ctx, c.Paths()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

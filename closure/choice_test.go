package closure_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// A pacer lets so many bytes a second through, of all who share it.
type pacer struct {
	rate float64
	mu   sync.Mutex
	free time.Time
}

func (p *pacer) wait(bytes float64) {
	p.mu.Lock()
	if now := time.Now(); p.free.Before(now) {
		p.free = now
	}
	p.free = p.free.Add(time.Duration(bytes / p.rate * float64(time.Second)))
	until := p.free
	p.mu.Unlock()
	time.Sleep(time.Until(until))
}

// A paced provider brings NARs at a rate; part of each NAR's bytes is what it moves.
type paced struct {
	*caches
	pacer *pacer
	part  float64
}

func (s paced) OpenLane(ctx context.Context) (closure.SourceLane, error) {
	lane, err := s.caches.OpenLane(ctx)
	return pacedLane{lane, s}, err
}

type pacedLane struct {
	closure.SourceLane
	paced paced
}

func (l pacedLane) Next(ctx context.Context) (closure.NAR, error) {
	nar, err := l.SourceLane.Next(ctx)
	if err != nil {
		return nil, err
	}
	return readerNAR{pacedReader{nar.Reader(), l.paced}}, nil
}

type pacedReader struct {
	r     io.Reader
	paced paced
}

func (r pacedReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p[:min(len(p), 4<<10)])
	r.paced.pacer.wait(float64(n) * r.paced.part)
	return n, err
}

// unevenFiles are paths of very different sizes, 10 MB in all.
func unevenFiles() nixtest.Closure {
	var c nixtest.Closure
	for i := range 100 {
		size := 2 << 10
		if i%5 == 0 {
			size = 100 << 10
		}
		if i%20 == 7 {
			size = 1600 << 10
		}
		c = append(c, nixtest.Source(fmt.Sprintf("file-%d", i), nixtest.Node{Content: strings.Repeat("x", size)}))
	}
	return c
}

// TestChoice wants the two providers together not to be slower than the better one of
// them alone, by more than a quarter.
func TestChoice(t *testing.T) {
	c := unevenFiles()
	store := nixtest.NewStore(c...)
	copyWith := func(link, cache float64, offered nixtest.Closure, prefer closure.Preference) (took time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			source := paced{newCaches(store, nil), &pacer{rate: link}, 1}
			caches := paced{newCaches(nixtest.NewStore(offered...), store), &pacer{rate: cache}, 0.5}
			target := &tolerantTarget{Store: nixtest.NewStore()}
			all, err := closure.Walk(t.Context(), memorySource{store}, c.Paths())
			if err != nil {
				t.Fatal(err)
			}
			plan, err := closure.Negotiate(t.Context(), all, source, target, closure.Terms{Caches: caches})
			if err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			err = closure.Copy(t.Context(), plan, source, target, closure.CopyOptions{
				Lanes: 2, Caches: caches, CacheLanes: 4, Prefer: prefer,
			})
			took = time.Since(begin)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(target.All()); n != len(c) {
				t.Errorf("%d paths arrived of %d", n, len(c))
			}
		})
		return took
	}
	for _, rates := range [][2]float64{{2e6, 1e5}, {1e5, 2e6}, {1e6, 1e6}, {5e6, 1e5}} {
		link, cache := rates[0], rates[1]
		push := copyWith(link, cache, c, closure.PreferPush)
		substitute := copyWith(link, cache, c, closure.PreferSubstitute)
		both := copyWith(link, cache, c, closure.AsFast)
		if best := min(push, substitute); both > best*5/4 {
			t.Errorf("link %.0f, cache %.0f bytes/s: %v, pushing alone %v, caches alone %v", link, cache, both, push, substitute)
		}
	}
	// What the cache has not got is sent in any case; the rest must not be in its way.
	part := c[:80]
	alone := copyWith(1e5, 2e6, part, closure.PreferSubstitute)
	if both := copyWith(1e5, 2e6, part, closure.AsFast); both > alone*5/4 {
		t.Errorf("beside what only the source has: %v, without a choice %v", both, alone)
	}
}

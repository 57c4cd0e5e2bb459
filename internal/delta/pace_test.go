package delta_test

import (
	"testing"
	"time"

	"github.com/copy-closure/copy-closure/internal/delta"
)

func TestPace(t *testing.T) {
	second := func(n int) time.Time { return time.Unix(int64(n), 0) }
	var p delta.Pace
	p.Begin(second(10))
	if p.Rate() != 0 || !p.Keeps(1e12) {
		t.Error("it knows a rate before anything was computed")
	}
	p.Begin(second(11)) // two at once count once
	p.End(second(12), 10<<20)
	if p.Rate() != 0 {
		t.Error("it knows a rate after 10 MiB")
	}
	p.End(second(14), 30<<20)
	p.Begin(second(100)) // nothing was computed meanwhile
	p.End(second(104), 40<<20)
	if got := p.Rate(); got != 10<<20 {
		t.Errorf("got %f bytes a second, want 80 MiB in 8 seconds", got)
	}
	for link, want := range map[float64]bool{0: true, 2 << 20: true, 9.9 * (1 << 20): true, 10.1 * (1 << 20): false, 1e9: false} {
		if got := p.Keeps(link); got != want {
			t.Errorf("a link of %f bytes a second: deltas keep up with it: %t", link, got)
		}
	}
}

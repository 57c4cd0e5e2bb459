package delta

import (
	"sync"
	"time"
)

// enoughComputed is how many bytes of archives a Pace wants to have seen.
const enoughComputed = 16 << 20

// A Pace tells how fast deltas are computed, by those before.
type Pace struct {
	mu      sync.Mutex
	running int
	since   time.Time // when the first of those that are running began
	busy    time.Duration
	bytes   int64 // of archives
}

// Begin says that a delta is being computed from now on.
func (p *Pace) Begin(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running++; p.running == 1 {
		p.since = now
	}
}

// End says that this has come to an end, for an archive of size bytes.
func (p *Pace) End(now time.Time, size int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bytes += size
	p.busy += now.Sub(p.since)
	p.since = now
	p.running--
}

// Rate returns for how many bytes of archives a second deltas are computed, all that run
// at once together; 0 if that is not known yet.
func (p *Pace) Rate() float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bytes < enoughComputed || p.busy <= 0 {
		return 0
	}
	return float64(p.bytes) / p.busy.Seconds()
}

// Keeps reports whether deltas come faster than a link takes the archives themselves, of
// which it takes so many bytes a second. As long as not both are known, they do.
func (p *Pace) Keeps(link float64) bool {
	rate := p.Rate()
	return rate == 0 || link <= rate
}

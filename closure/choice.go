package closure

import (
	"errors"
	"time"
)

// A Preference says where paths come from that both the source and caches have.
type Preference string

// The preferences. AsFast is the zero value.
const (
	AsFast           Preference = ""           // whichever promises to be sooner
	PreferPush       Preference = "push"       // the source
	PreferSubstitute Preference = "substitute" // caches
)

// How paths that both have are shared out under AsFast: each provider takes from the
// end of the list that suits it, the caches the largest path, the source the smallest,
// so that neither waits for the other and they meet somewhere in the middle. Where that
// is follows from the rates seen so far. A provider leaves a path alone if the other one
// would, at its rate, sooner be through with all that is left than it with this one;
// of two providers at most one can think so, and a path is never left by both. What a
// slow cache has begun before its rate was known is taken away from it again when the
// source has nothing else to do and would be much sooner through with it.

const (
	// soon is when a cache is left to finish what it has: less is not worth finding out
	// how fast the source is.
	soon = time.Second
	// muchSooner is how many times longer a cache would take before a path is taken
	// away from it: what was downloaded is lost then.
	muchSooner = 1.5
	// A rate is believed after so many bytes, and so much time: what comes first may have
	// waited in buffers.
	enough     = 16 << 10
	longEnough = 200 * time.Millisecond
	// horizon is how far ahead the source is given paths that caches have, too. What it
	// was asked for cannot be taken back.
	horizon = 500 * time.Millisecond
	// reconsider is how often those who left a path alone look at the rates again.
	reconsider = 200 * time.Millisecond
)

// errTaken is why the download of a path from a cache ends that the source sends now.
var errTaken = errors.New("the source is faster")

// A pace is how fast a provider has been. The bytes are those that it moves itself:
// of NARs for the source, of downloads for caches.
type pace struct {
	bytes  float64
	busy   time.Duration // with at least one path under way
	since  time.Time     // it is busy now
	active int           // paths under way
}

func (p *pace) begin(now time.Time) {
	if p.active == 0 {
		p.since = now
	}
	p.active++
}

func (p *pace) end(now time.Time) {
	p.active--
	if p.active == 0 {
		p.busy += now.Sub(p.since)
	}
}

// idle is how long it has been busy without bringing much.
func (p *pace) idle(now time.Time) time.Duration {
	if p.active == 0 {
		return p.busy
	}
	return p.busy + now.Sub(p.since)
}

// rate returns bytes per second; 0 as long as it is not known.
func (p *pace) rate(now time.Time) float64 {
	busy := p.busy
	if p.active > 0 {
		busy += now.Sub(p.since)
	}
	if p.bytes < enough || busy < longEnough {
		return 0
	}
	return p.bytes / busy.Seconds()
}

// cost is how many bytes a provider moves for t.
func (t *task) cost(by provider) float64 {
	if by == byCaches {
		return float64(max(t.download, 1))
	}
	return float64(max(t.info.NARSize, 1))
}

// other returns the provider that by competes with.
func (by provider) other() provider { return providers - 1 - by }

// wants reports whether the lane of q should take t now. The caller holds s.mu.
func (s *schedule) wants(q *laneQueue, t *task) bool {
	if q.by == byCaches && q.busy && t.info.NARSize > q.limit {
		return false // a big path does not wait behind another one
	}
	other := q.by.other()
	if !s.shared || !t.may[other] {
		return true
	}
	switch s.prefer {
	case PreferPush:
		return q.by == bySource
	case PreferSubstitute:
		return q.by == byCaches
	}
	now := time.Now()
	mine, theirs := s.paces[q.by].rate(now), s.paces[other].rate(now)
	rest := s.waiting[other] + s.underWay[other]
	switch {
	case q.by == byCaches && mine == 0:
		return q.ahead == 0
	case q.by == byCaches && theirs == 0:
		return true
	case theirs == 0: // caches come first, but they must do something
		return s.paces[other].idle(now) > soon
	case mine == 0: // one path to find out, if that may be of use
		return s.underWay[q.by] == 0 && rest/theirs > soon.Seconds()
	}
	if q.by == bySource && s.underWay[q.by] > mine*horizon.Seconds() {
		return false
	}
	return (s.underWay[q.by]+t.cost(q.by))/mine <= rest/theirs
}

// A bringing is one attempt of a provider at a path.
type bringing struct {
	*task
	s      *schedule
	q      *laneQueue
	by     provider
	cancel func(error)
	moved  float64 // of the path's cost
}

// bring begins an attempt of the lane of t, which end ends; cancel makes it fail.
func (s *schedule) bring(t *task, cancel func(error)) *bringing {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.lanes[t.lane]
	by := q.by
	b := &bringing{task: t, s: s, q: q, by: by, cancel: cancel}
	q.busy = true
	s.paces[by].begin(time.Now())
	if s.shared && by == byCaches && cancel != nil {
		s.downloads[b] = true
	}
	return b
}

// passed says that n bytes of the NAR have come.
func (b *bringing) passed(n int) {
	if !b.s.shared {
		return
	}
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	moved := float64(n) * b.cost(b.by) / float64(max(b.info.NARSize, 1))
	b.moved += moved
	b.s.underWay[b.by] -= moved
	b.s.paces[b.by].bytes += moved
}

// end says that no more will come.
func (b *bringing) end() {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	delete(b.s.downloads, b)
	b.s.underWay[b.by] -= b.cost(b.by) - b.moved
	b.s.paces[b.by].end(time.Now())
	b.q.busy = false
	if b.s.shared || b.by == byCaches {
		b.s.changed.Broadcast()
	}
}

// takeAway ends a download that the source would be much sooner through with, for a
// lane of it that has nothing else to do. The caller holds s.mu.
func (s *schedule) takeAway() {
	now := time.Now()
	source, caches := s.paces[bySource].rate(now), s.paces[byCaches].rate(now)
	if !s.shared || s.prefer != AsFast || source == 0 || caches == 0 || s.underWay[bySource] > 0 {
		return
	}
	for b := range s.downloads {
		if !b.may[bySource] {
			continue
		}
		// Those that are under way share what the caches bring.
		left := (b.cost(byCaches) - b.moved) * float64(len(s.downloads)) / caches
		if left > muchSooner*b.cost(bySource)/source+soon.Seconds() {
			delete(s.downloads, b)
			b.cancel(errTaken)
			return
		}
	}
}

// smallFirst is the order in which the source takes paths: those that nobody else has,
// then small ones. largeFirst is that of the caches.
func smallFirst(a, b *task) bool {
	switch {
	case a.may[byCaches] != b.may[byCaches]:
		return b.may[byCaches]
	case !a.may[byCaches] || a.info.NARSize == b.info.NARSize:
		return a.index < b.index
	}
	return a.info.NARSize < b.info.NARSize
}

func largeFirst(a, b *task) bool {
	if a.info.NARSize == b.info.NARSize {
		return a.index < b.index
	}
	return a.info.NARSize > b.info.NARSize
}

// bigFirst is the order where caches have everything: no big path is left for the end,
// when the other lanes have nothing to do, and most paths find their references valid.
func bigFirst(a, b *task) bool {
	const big = 1 << 20
	if a.info.NARSize < big && b.info.NARSize < big {
		return a.index < b.index
	}
	return largeFirst(a, b)
}

func inOrder(a, b *task) bool { return a.index < b.index }

// fromTheEnd is the order of the source where the destination asks caches for itself,
// which takes references first: what is sent then is no reference of what it waits for.
func fromTheEnd(a, b *task) bool {
	switch {
	case a.may[byCaches] != b.may[byCaches]:
		return b.may[byCaches]
	case a.may[byCaches]:
		return a.index > b.index
	}
	return a.index < b.index
}

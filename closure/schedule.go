package closure

import (
	"container/heap"
	"sync"
	"time"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A provider is one of the two that a path can come from.
type provider int

const (
	bySource  provider = iota
	byCaches           // as far as they offer it
	providers          // their number
)

// A schedule hands the paths of a plan to lanes, each of which has one provider.
// Unless any order will do, a path goes to a lane only when each of its references is
// valid at the destination, or ahead of it in the same lane.
type schedule struct {
	mu        sync.Mutex
	changed   *sync.Cond
	tasks     []*task             // references first
	free      [providers]taskHeap // what any lane of the provider may have
	lanes     []*laneQueue
	lenient   bool // a path that nobody can bring is left out
	tolerant  bool // a path that a provider fails to bring may be assigned again
	left      int  // not yet assigned
	unsettled int  // assigned, and may yet have to be assigned again
	undone    int  // not yet valid
	err       error

	// See choice.go.
	shared    bool // some paths can come from both providers, in any order
	prefer    Preference
	paces     [providers]pace
	waiting   [providers]float64 // cost of what each may bring and is not assigned
	underWay  [providers]float64 // of what is assigned and has not come
	downloads map[*bringing]bool // from caches, that the source may take away
}

// A task is one path to copy.
type task struct {
	info      *nix.PathInfo
	index     int     // in the schedule's order
	refs      []*task // references that are to be copied, too
	referrers []*task
	waiting   int // of refs, not yet assigned
	lane      int // it is assigned to, or noLane
	valid     bool
	may       [providers]bool // who can bring it
	tries     int             // that failed
	err       error           // of the first that failed
	download  int64           // bytes, from caches
}

// maxTries bounds how often a path is assigned. Only a CacheSource that never runs
// out of caches comes to it.
const maxTries = 20

const noLane = -1

// A laneQueue is a lane's share of a schedule.
type laneQueue struct {
	by    provider
	ready taskHeap // those that only this lane may have
	ahead int64    // bytes assigned and not yet taken up
	limit int64    // of ahead
	busy  bool     // a path is being brought
}

// A scheduling says what newSchedule is to know.
type scheduling struct {
	infos    []*nix.PathInfo         // in order, references first
	offered  map[nix.StorePath]int64 // bytes to download, of those that caches have
	source   bool                    // there is a source, which has all
	anyOrder bool
	tolerant bool
	partial  bool // the source makes NARs of what the destination has, which may be wrong
	there    bool // the caches are asked by the destination itself

	bestEffort bool // a path that nobody can bring is left out
	prefer     Preference
}

func newSchedule(o scheduling) *schedule {
	s := &schedule{left: len(o.infos), undone: len(o.infos), tolerant: o.tolerant && (o.partial || len(o.offered) > 0), lenient: o.bestEffort, prefer: o.prefer}
	s.changed, s.downloads = sync.NewCond(&s.mu), make(map[*bringing]bool)
	s.shared = s.tolerant && o.source && len(o.offered) > 0
	s.free = [providers]taskHeap{{before: inOrder}, {before: inOrder}}
	switch {
	case s.shared && o.anyOrder && o.there:
		s.free[bySource].before = fromTheEnd
	case s.shared && o.anyOrder:
		s.free[bySource].before, s.free[byCaches].before = smallFirst, largeFirst
	case o.anyOrder && !o.source:
		s.free[byCaches].before = bigFirst
	}
	byPath := make(map[nix.StorePath]*task, len(o.infos))
	for i, info := range o.infos {
		download, offered := o.offered[info.Path]
		t := &task{info: info, index: i, lane: noLane, download: download}
		t.may = [providers]bool{bySource: o.source, byCaches: offered}
		byPath[info.Path] = t
		s.tasks = append(s.tasks, t)
		s.unassigned(t, 1)
		if !o.anyOrder {
			t.link(byPath)
		}
		if t.waiting == 0 {
			s.release(t)
		}
	}
	return s
}

// release offers t to every lane that can bring it.
func (s *schedule) release(t *task) {
	for by := range providers {
		if t.may[by] {
			heap.Push(&s.free[by], t)
		}
	}
}

// unassigned adds t to what waits to be assigned, or takes it away if sign is -1.
func (s *schedule) unassigned(t *task, sign float64) {
	for by := range providers {
		if t.may[by] {
			s.waiting[by] += sign * t.cost(by)
		}
	}
}

// link finds the references of t, which come before it.
func (t *task) link(byPath map[nix.StorePath]*task) {
	for _, ref := range t.info.References {
		r := byPath[ref]
		if r == nil || r == t {
			continue
		}
		t.refs = append(t.refs, r)
		r.referrers = append(r.referrers, t)
		t.waiting++
	}
}

// addLane makes room for a further lane and returns its number.
func (s *schedule) addLane(by provider, lookahead int64) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lanes = append(s.lanes, &laneQueue{by: by, ready: taskHeap{before: inOrder}, limit: lookahead})
	return len(s.lanes) - 1
}

// next waits for a path for lane. It returns nil when there will be none.
func (s *schedule) next(lane int) *task {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.lanes[lane]
	for s.err == nil && (s.left > 0 || s.tolerant && s.unsettled > 0) {
		if q.ahead == 0 || q.ahead < q.limit {
			if t := s.pick(lane); t != nil {
				s.assign(t, lane)
				return t
			}
			if q.by == bySource && q.ahead == 0 {
				s.takeAway()
			}
		}
		s.changed.Wait()
	}
	return nil
}

// pick takes the first path that a lane may have.
func (s *schedule) pick(lane int) *task {
	q := s.lanes[lane]
	ready, free := &q.ready, &s.free[q.by]
	ready.dropStale(lane)
	free.dropStale(lane)
	switch {
	case ready.Len() == 0 && free.Len() == 0:
		return nil
	case free.Len() == 0 || ready.Len() > 0 && ready.tasks[0].index < free.tasks[0].index:
		return heap.Pop(ready).(*task)
	case !s.wants(q, free.tasks[0]):
		if ready.Len() > 0 {
			return heap.Pop(ready).(*task)
		}
		return nil
	}
	return heap.Pop(free).(*task)
}

func (s *schedule) assign(t *task, lane int) {
	t.lane = lane
	s.left--
	s.unsettled++
	s.unassigned(t, -1)
	s.underWay[s.lanes[lane].by] += t.cost(s.lanes[lane].by)
	s.lanes[lane].ahead += max(t.info.NARSize, 1)
	for _, r := range t.referrers {
		r.waiting--
		s.offer(r)
	}
	s.changed.Broadcast()
}

// offer puts t where the lanes find it, once all of its references are on their way.
func (s *schedule) offer(t *task) {
	if t.waiting > 0 || t.lane != noLane {
		return
	}
	only := noLane
	for _, ref := range t.refs {
		switch {
		case ref.valid || ref.lane == only:
		case only == noLane:
			only = ref.lane
		default:
			return // in two lanes: wait until one of them has arrived
		}
	}
	switch {
	case only == noLane:
		s.release(t)
	case t.may[s.lanes[only].by]:
		heap.Push(&s.lanes[only].ready, t)
	}
}

// taken says that lane has taken up t, so that it may be assigned more.
func (s *schedule) taken(t *task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lanes[t.lane].ahead -= max(t.info.NARSize, 1)
	s.changed.Broadcast()
}

// arrived says that t is valid at the destination.
func (s *schedule) arrived(t *task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.valid = true
	s.undone--
	for _, r := range t.referrers {
		s.offer(r)
	}
	s.changed.Broadcast()
}

// reconsider wakes those who left paths alone, until stop is called.
func (s *schedule) reconsider() (stop func()) {
	if !s.shared {
		return func() {}
	}
	ticker, done := time.NewTicker(reconsider), make(chan struct{})
	var ticking sync.WaitGroup
	ticking.Go(func() {
		for {
			select {
			case <-ticker.C:
				s.changed.Broadcast()
			case <-done:
				return
			}
		}
	})
	return func() { ticker.Stop(); close(done); ticking.Wait() }
}

// settle says that a lane has come to the end of n paths: whatever can still happen to
// them is no fault of their provider.
func (s *schedule) settle(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsettled -= n
	s.changed.Broadcast()
}

// lost says that t could not be had from the provider of its lane. It goes back to be
// assigned again, or else the schedule ends with the first error that t met.
func (s *schedule) lost(t *task, err error, forGood bool) {
	s.mu.Lock()
	by := s.lanes[t.lane].by
	if t.err == nil {
		t.err = err
	}
	t.tries++
	if forGood || t.tries == maxTries {
		t.may[by] = false
	}
	hopeless := !s.tolerant || s.unsettled == 0 || t.may == [providers]bool{}
	if hopeless && !s.lenient {
		s.mu.Unlock()
		s.fail(t.err)
		return
	}
	defer s.mu.Unlock()
	if hopeless {
		s.undone--
		s.changed.Broadcast()
		return
	}
	t.lane = noLane
	s.left++
	s.unassigned(t, 1)
	for _, r := range t.referrers {
		r.waiting++
	}
	t.waiting = 0
	for _, ref := range t.refs {
		if ref.lane == noLane {
			t.waiting++
		}
	}
	s.offer(t)
	s.changed.Broadcast()
}

// fail ends the schedule; the first error stays, but one that tells a cause is
// better than one that only tells of its consequence.
func (s *schedule) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil || isConsequence(s.err) && !isConsequence(err) {
		s.err = err
	}
	s.changed.Broadcast()
}

// wait returns when every path has arrived, or with the error of fail.
func (s *schedule) wait() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.err == nil && s.undone > 0 {
		s.changed.Wait()
	}
	return s.err
}

// A taskHeap is a container/heap. A task may be in two of them, and is dropped from
// the second when it turns up there.
type taskHeap struct {
	tasks  []*task
	before func(a, b *task) bool
}

func (h *taskHeap) Len() int           { return len(h.tasks) }
func (h *taskHeap) Less(i, j int) bool { return h.before(h.tasks[i], h.tasks[j]) }
func (h *taskHeap) Swap(i, j int)      { h.tasks[i], h.tasks[j] = h.tasks[j], h.tasks[i] }
func (h *taskHeap) Push(x any)         { h.tasks = append(h.tasks, x.(*task)) }

func (h *taskHeap) Pop() any {
	last := len(h.tasks) - 1
	t := h.tasks[last]
	h.tasks[last] = nil
	h.tasks = h.tasks[:last]
	return t
}

// dropStale drops from the top what is assigned, or waits again for a reference that
// was lost.
func (h *taskHeap) dropStale(lane int) {
	for len(h.tasks) > 0 && !h.tasks[0].readyFor(lane) {
		heap.Pop(h)
	}
}

// readyFor reports whether t is free and each of its references is valid, or ahead of
// it in that lane.
func (t *task) readyFor(lane int) bool {
	for _, ref := range t.refs {
		if !ref.valid && ref.lane != lane {
			return false
		}
	}
	return t.lane == noLane
}

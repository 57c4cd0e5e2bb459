package closure

import (
	"container/heap"
	"sync"

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
	tolerant  bool // a path that a provider fails to bring may be assigned again
	left      int  // not yet assigned
	unsettled int  // assigned, and may yet have to be assigned again
	undone    int  // not yet valid
	err       error
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
}

// newSchedule schedules infos, which are in order, references first. The paths that
// caches offer are in offered; the source has them too if it is there at all.
func newSchedule(infos []*nix.PathInfo, offered map[nix.StorePath]bool, source, anyOrder, tolerant bool) *schedule {
	s := &schedule{left: len(infos), undone: len(infos), tolerant: tolerant}
	s.changed = sync.NewCond(&s.mu)
	byPath := make(map[nix.StorePath]*task, len(infos))
	for i, info := range infos {
		t := &task{info: info, index: i, lane: noLane}
		t.may = [providers]bool{bySource: source, byCaches: offered[info.Path]}
		byPath[info.Path] = t
		s.tasks = append(s.tasks, t)
		if !anyOrder {
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
	s.lanes = append(s.lanes, &laneQueue{by: by, limit: lookahead})
	return len(s.lanes) - 1
}

// next waits for a path for lane. It returns nil when there will be none.
func (s *schedule) next(lane int) *task {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.lanes[lane]
	for s.err == nil && (s.left > 0 || s.tolerant && s.unsettled > 0) {
		if q.ahead == 0 || q.ahead < q.limit {
			if t := s.pick(q); t != nil {
				s.assign(t, lane)
				return t
			}
		}
		s.changed.Wait()
	}
	return nil
}

// pick takes the first path that q's lane may have.
func (s *schedule) pick(q *laneQueue) *task {
	free := &s.free[q.by]
	q.ready.dropAssigned()
	free.dropAssigned()
	switch {
	case len(q.ready) == 0 && len(*free) == 0:
		return nil
	case len(*free) == 0 || len(q.ready) > 0 && q.ready[0].index < (*free)[0].index:
		return heap.Pop(&q.ready).(*task)
	}
	return heap.Pop(free).(*task)
}

func (s *schedule) assign(t *task, lane int) {
	t.lane = lane
	s.left--
	s.unsettled++
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
	if !s.tolerant || s.unsettled == 0 || t.may == [providers]bool{} {
		s.mu.Unlock()
		s.fail(t.err)
		return
	}
	defer s.mu.Unlock()
	t.lane = noLane
	s.left++
	s.release(t)
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

// A taskHeap is a container/heap by index. A task may be in two of them, and is
// dropped from the second when it turns up there.
type taskHeap []*task

func (h taskHeap) Len() int           { return len(h) }
func (h taskHeap) Less(i, j int) bool { return h[i].index < h[j].index }
func (h taskHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *taskHeap) Push(x any)        { *h = append(*h, x.(*task)) }

func (h *taskHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return t
}

func (h *taskHeap) dropAssigned() {
	for len(*h) > 0 && (*h)[0].lane != noLane {
		heap.Pop(h)
	}
}

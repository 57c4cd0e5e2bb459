// Package progress counts what a copy has done. Copy loops add to a Meter, and
// whoever draws it polls; nothing waits for a drawing.
package progress

import (
	"sync"
	"sync/atomic"
)

// A Meter holds the counters of one copy. Its methods may be called concurrently,
// and on a nil Meter, which discards everything.
type Meter struct {
	totalPaths, donePaths atomic.Int64
	totalBytes, doneBytes atomic.Int64

	mu     sync.Mutex
	active []*string // what is under way, oldest first
}

// A State is what a Meter held at one moment.
type State struct {
	TotalPaths, DonePaths int64
	TotalBytes, DoneBytes int64    // of NARs
	Active                []string // names of what is under way, oldest first
}

// Expect adds to the totals.
func (m *Meter) Expect(paths int, bytes int64) {
	if m == nil {
		return
	}
	m.totalPaths.Add(int64(paths))
	m.totalBytes.Add(bytes)
}

// Bytes counts n further bytes of NARs.
func (m *Meter) Bytes(n int) {
	if m != nil {
		m.doneBytes.Add(int64(n))
	}
}

// Path counts one more path that is valid at its destination.
func (m *Meter) Path() {
	if m != nil {
		m.donePaths.Add(1)
	}
}

// Start says that name is under way, until stop is called.
func (m *Meter) Start(name string) (stop func()) {
	if m == nil {
		return func() {}
	}
	entry := &name
	m.mu.Lock()
	m.active = append(m.active, entry)
	m.mu.Unlock()
	return func() { m.stop(entry) }
}

func (m *Meter) stop(entry *string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, e := range m.active {
		if e == entry {
			m.active = append(m.active[:i], m.active[i+1:]...)
			return
		}
	}
}

// State returns the counters.
func (m *Meter) State() State {
	if m == nil {
		return State{}
	}
	s := State{
		TotalPaths: m.totalPaths.Load(), DonePaths: m.donePaths.Load(),
		TotalBytes: m.totalBytes.Load(), DoneBytes: m.doneBytes.Load(),
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.active {
		s.Active = append(s.Active, *e)
	}
	return s
}

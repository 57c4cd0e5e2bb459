package closure

import (
	"context"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A lane in which the destination takes paths from its own caches asks for a few at
// once: in one go as many as it needs to tell its rate, then twice as many each time.
const (
	firstBatch = 8
	mostBatch  = 64
)

// runThere has the destination substitute what the schedule assigns to its caches, and
// gives back to the source what it could not get.
func (c *copying) runThere(ctx context.Context) {
	lane := c.schedule.addLane(byCaches, 0)
	for most := firstBatch; ; most = min(2*most, mostBatch) {
		batch := c.schedule.batch(lane, most)
		if len(batch) == 0 {
			return
		}
		err := c.substitute(ctx, batch)
		if err != nil && ctx.Err() == nil {
			c.Logger.Warn("the far end does not substitute, sending instead", "because", err)
			c.schedule.withdraw(byCaches)
		}
		c.schedule.settle(len(batch))
	}
}

// substitute makes one request for a batch.
func (c *copying) substitute(ctx context.Context, batch []*task) error {
	paths := make([]nix.StorePath, len(batch))
	attempts := make([]*bringing, len(batch))
	for i, t := range batch {
		paths[i] = t.info.Path
		attempts[i] = c.schedule.bring(t, nil)
	}
	valid, err := c.There.Substitute(ctx, paths)
	arrived := make(map[nix.StorePath]bool, len(valid))
	for _, p := range valid {
		arrived[p] = true
	}
	// References come first, so that what is sent instead finds them assigned.
	for i, t := range batch {
		if arrived[t.info.Path] {
			attempts[i].passed(int(t.info.NARSize))
			attempts[i].end()
			c.Meter.Bytes(int(t.info.NARSize))
			c.arrived(t, byCaches)
			continue
		}
		attempts[i].end()
		c.schedule.lost(t, ErrNowhereElse, true)
	}
	return err
}

// batch waits for paths for lane, up to most of them. There are none when there will
// be none.
func (s *schedule) batch(lane, most int) []*task {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.lanes[lane]
	for s.err == nil && (s.left > 0 || s.unsettled > 0) {
		var batch []*task
		for len(batch) < most {
			t := s.pick(lane)
			if t == nil {
				break
			}
			s.assign(t, lane)
			q.ahead = 0
			batch = append(batch, t)
		}
		if len(batch) > 0 {
			return batch
		}
		s.changed.Wait()
	}
	return nil
}

// withdraw says that a provider brings nothing more. What it was assigned is not
// affected.
func (s *schedule) withdraw(by provider) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tasks {
		if t.lane == noLane && t.may[by] {
			t.may[by] = false
			s.waiting[by] -= t.cost(by)
		}
	}
	s.free[by].tasks = nil
	s.changed.Broadcast()
}

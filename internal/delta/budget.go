package delta

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// budget is how many bytes of archives deltas are computed for at once.
const budget = 32 << 20

// A Budget bounds the memory of deltas that are computed at once, which grows with the
// archives at first.
type Budget struct{ bytes *semaphore.Weighted }

// NewBudget returns one for a process.
func NewBudget() Budget { return Budget{semaphore.NewWeighted(budget)} }

// Reserve waits until there is memory for the delta of an archive of size bytes.
func (b Budget) Reserve(ctx context.Context, size int64) (release func(), err error) {
	size = min(max(size, 1<<20), budget)
	if err := b.bytes.Acquire(ctx, size); err != nil {
		return nil, err
	}
	return func() { b.bytes.Release(size) }, nil
}

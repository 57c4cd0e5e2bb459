package nix

import (
	"errors"
	"fmt"
)

// ErrClosureTooLarge means that a closure described by a far end or a cache exceeds a limit.
var ErrClosureTooLarge = errors.New("the closure is too large")

// Sizes of what the fields of a path info take beside their text: the header of a
// string, and what an allocation is rounded up by.
const (
	infoOverhead   = 320
	stringOverhead = 32
)

// MemorySize estimates the bytes of memory that info takes, for budgets.
func (info *PathInfo) MemorySize() int {
	size := infoOverhead + len(info.Path.s) + len(info.Deriver.s) + len(info.CA)
	for _, ref := range info.References {
		size += stringOverhead + len(ref.s)
	}
	for _, sig := range info.Signatures {
		size += stringOverhead + len(sig)
	}
	return size
}

// Limits on a closure described by a far end or a cache, which could invent references for
// ever. No real system is meant to reach them.
const (
	MaxClosurePaths  = 1_000_000
	MaxClosureMemory = 512 << 20 // bytes of path infos
)

// A ClosureBudget counts what is learned of a closure. The zero value is ready for use;
// it is not for concurrent use.
type ClosureBudget struct {
	paths, memory int
}

// Add counts a path of which size bytes are kept in memory. It returns an error wrapping
// ErrClosureTooLarge when a limit is exceeded.
func (b *ClosureBudget) Add(size int) error {
	b.paths++
	b.memory += size
	if b.paths > MaxClosurePaths {
		return fmt.Errorf("%w: it has more than %d paths", ErrClosureTooLarge, MaxClosurePaths)
	}
	if b.memory > MaxClosureMemory {
		return fmt.Errorf("%w: the path infos of its first %d paths take more than %d MiB", ErrClosureTooLarge, b.paths, MaxClosureMemory>>20)
	}
	return nil
}

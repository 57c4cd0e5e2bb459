package substitute

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
)

// A MarkingStore is a ServedStore that can tell whether a path has changed since it was
// read.
type MarkingStore interface {
	ServedStore
	// WriteMarkedNAR is WriteNAR, and marks the state of what it has read.
	WriteMarkedNAR(ctx context.Context, w io.Writer, p nix.StorePath) (nar.Mark, error)
}

// mostVerdicts bounds the memory for verdicts: some 200 bytes each.
const mostVerdicts = 1 << 15

// Verdicts remember NARs that were hashed and right, so that they need not be hashed
// again while nothing has changed. The zero value is empty.
type verdicts struct {
	mu    sync.Mutex
	marks map[verdictKey]nar.Mark
}

type verdictKey struct {
	path nix.StorePath
	hash nix.Hash
}

func (v *verdicts) get(info *nix.PathInfo) (mark nar.Mark, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	mark, ok = v.marks[verdictKey{info.Path, info.NARHash}]
	return mark, ok
}

// put remembers that the NAR which a dump begun at that time has written was right. One
// that may change without another mark is not remembered.
func (v *verdicts) put(info *nix.PathInfo, mark nar.Mark, begun time.Time) {
	if !mark.Settled(begun) {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.marks == nil || len(v.marks) >= mostVerdicts {
		v.marks = make(map[verdictKey]nar.Mark)
	}
	v.marks[verdictKey{info.Path, info.NARHash}] = mark
}

// forget has the NAR hashed next time.
func (v *verdicts) forget(info *nix.PathInfo) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.marks, verdictKey{info.Path, info.NARHash})
}

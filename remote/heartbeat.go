package remote

import (
	"fmt"
	"io"
	"time"
)

const (
	// heartbeat is how often each lane carries something at least.
	heartbeat = 5 * time.Second
	// mostSilent is after how many beats without a byte a lane is given up. Beats are
	// counted, and no time, so that a process may be stopped and go on.
	mostSilent = 6
)

var errSilent = fmt.Errorf("nothing has come from the other end for %v", mostSilent*heartbeat)

// In Nix's protocols, which have no heartbeat, an end may be silent for so long in the
// middle of a request or a NAR. That is long enough for a laptop that slept for a moment
// and for a disk that has to wake up.
const (
	requestSilence = 15 * time.Minute // of a client
	narSilence     = 5 * time.Minute  // of a far end
)

var (
	errSilentClient = fmt.Errorf("nothing has come from the client for %v in the middle of a request", requestSilence)
	errSilentNAR    = fmt.Errorf("nothing has come from the far end for %v in the middle of a NAR", narSilence)
)

// keepAlive has something written to a lane from time to time, so that the other side
// knows that it works, and ends the lane when that side says nothing: its frames go over
// others then, and a far end that has lost its client makes room for the next.
func (b *bundle) keepAlive(l *lane, stop <-chan struct{}) {
	ticker := time.NewTicker(heartbeat)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-stop:
			return
		}
		if b.beat(l) {
			l.abort()
			return
		}
	}
}

// beat reports whether the lane was silent for too long.
func (b *bundle) beat(l *lane) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l.heard.Swap(false) {
		l.silent = 0
	} else {
		l.silent++
	}
	l.beat = true
	b.work.Broadcast()
	return l.silent == mostSilent
}

// hearing notes that something was read.
type hearing struct {
	io.Reader
	lane *lane
}

func (h hearing) Read(p []byte) (int, error) {
	n, err := h.Reader.Read(p)
	if n > 0 {
		h.lane.heard.Store(true)
	}
	return n, err
}

package remote_test

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// TestPeerLimit copies 3 MiB that cannot be compressed at 1 MiB a second, in both
// directions.
func TestPeerLimit(t *testing.T) {
	o := noise()
	for _, pull := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := nixtest.NewStore()
			if pull {
				s = nixtest.NewStore(o)
			}
			h := newPeerHost(t, s)
			h.peer.Limit = rate.NewLimiter(1<<20, 1<<17)
			p := h.openPeer(t)
			start := time.Now()
			var err error
			if pull {
				err = receive(t.Context(), p, io.Discard, o.Info)
			} else {
				err = pushAll(t, p, nixtest.Closure{o}, 1)
			}
			if took := time.Since(start); err != nil || took < 2*time.Second || took > 4*time.Second {
				t.Errorf("pull %t: %v after %v", pull, err, took)
			}
			p.Close()
		})
	}
}

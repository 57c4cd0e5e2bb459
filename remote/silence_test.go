package remote_test

import (
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// A stuckStream gives so many bytes and then nothing until it is closed.
type stuckStream struct {
	io.ReadWriteCloser
	left   int
	once   sync.Once
	closed chan struct{}
}

func (s *stuckStream) Read(p []byte) (int, error) {
	if s.left == 0 {
		<-s.closed
		return 0, io.ErrClosedPipe
	}
	n, err := s.ReadWriteCloser.Read(p[:min(len(p), s.left)])
	s.left -= n
	return n, err
}

func (s *stuckStream) Close() error {
	s.once.Do(func() { close(s.closed) })
	return s.ReadWriteCloser.Close()
}

// TestSilence has either end fall silent in the middle of a NAR, for ever.
func TestSilence(t *testing.T) {
	o := noise()
	t.Run("far end", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := &pipeHost{store: nixtest.NewStore(o), options: serverWriter, fault: func(near io.ReadWriteCloser) io.ReadWriteCloser {
				return &stuckStream{ReadWriteCloser: near, left: 100_000, closed: make(chan struct{})}
			}}
			lane, err := openStore(t, h).OpenLane(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := lane.Request(t.Context(), o.Info); err != nil {
				t.Fatal(err)
			}
			d, err := lane.Next(t.Context())
			if err == nil {
				_, err = io.Copy(io.Discard, d)
			}
			if err == nil || !strings.Contains(err.Error(), "nothing has come from the far end") {
				t.Errorf("got %v", err)
			}
		})
	})
	t.Run("client", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := startServer(t, nixtest.NewStore(), serverWriter, 7)
			time.Sleep(24 * time.Hour) // between two requests it may be silent
			c.ask(1, []uint64{1, 0})
			c.wantPaths()
			c.Uint64(1)
			c.Flush()
			time.Sleep(time.Hour)
			if err := c.end(); err == nil || !strings.Contains(err.Error(), "in the middle of a request") {
				t.Errorf("the session ended with %v", err)
			}
		})
	})
}

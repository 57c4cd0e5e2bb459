package remote

import (
	"bytes"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A stalling stream swallows what is written once it is told to, as a link does that is
// down.
type stalling struct {
	io.ReadWriteCloser
	down *atomic.Bool
}

func (s stalling) Write(p []byte) (int, error) {
	if s.down.Load() {
		return len(p), nil
	}
	return s.ReadWriteCloser.Write(p)
}

func TestIdleLanesStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, maxFrame)
		p.join(nil)
		time.Sleep(time.Hour)
		if err := errors.Join(p.a.failure(), p.b.failure()); err != nil {
			t.Error(err)
		}
		p.end()
	})
}

// TestStalledLane has one of two lanes stall: what it took goes over the other.
func TestStalledLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, maxFrame)
		p.join(nil)
		var down atomic.Bool
		p.join(func(s io.ReadWriteCloser) io.ReadWriteCloser { return stalling{s, &down} })
		synctest.Wait()
		down.Store(true)
		data := noise(1, 3<<20)
		go send(p.a, data)
		if got, err := io.ReadAll(p.b); err != nil || !bytes.Equal(got, data) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		p.end()
	})
}

// TestSilence has the only lane stall: both ends give up.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, maxFrame)
		var down atomic.Bool
		p.join(func(s io.ReadWriteCloser) io.ReadWriteCloser { return stalling{s, &down} })
		synctest.Wait()
		down.Store(true)
		start := time.Now()
		_, err := p.b.Read(make([]byte, 1))
		if !errors.Is(err, errSilent) || time.Since(start) > time.Minute {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
		p.end()
	})
}

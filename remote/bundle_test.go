package remote

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// A pair is two bundles joined by lanes.
type pair struct {
	a, b  *bundle
	lanes sync.WaitGroup
}

func newPair(t *testing.T, window int) *pair {
	p := &pair{a: newBundle(window), b: newBundle(window)}
	t.Cleanup(p.end)
	return p
}

// end ends both, and waits for their lanes.
func (p *pair) end() {
	p.a.fail(errClosed)
	p.b.fail(errClosed)
	p.lanes.Wait()
}

// join adds a lane, whose near end faulty may spoil; one that nothing spoils is at
// work when join returns.
func (p *pair) join(faulty func(io.ReadWriteCloser) io.ReadWriteCloser) {
	near, far := nixtest.Pipe()
	if faulty != nil {
		near = faulty(near)
	}
	for _, side := range []struct {
		b *bundle
		s io.ReadWriteCloser
	}{{p.a, near}, {p.b, far}} {
		before := side.b.laneCount()
		defer func() {
			for faulty == nil && side.b.laneCount() == before {
				runtime.Gosched()
			}
		}()
		p.lanes.Go(func() {
			err := side.b.run(side.s, side.s, func() { side.s.Close() })
			side.s.Close()
			if side.b.alone() {
				side.b.fail(err)
			}
		})
	}
}

func (b *bundle) laneCount() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.lanes)
}

// noise is data that differs everywhere.
func noise(seed uint64, size int) []byte {
	var key [32]byte
	key[0] = byte(seed)
	b := make([]byte, size)
	rand.NewChaCha8(key).Read(b)
	return b
}

// send writes data in pieces of odd sizes, and ends the stream.
func send(b *bundle, data []byte) error {
	sizes := rand.New(rand.NewPCG(1, uint64(len(data))))
	for len(data) > 0 {
		n := min(len(data), 1+sizes.IntN(300<<10))
		if _, err := b.Write(data[:n]); err != nil {
			return err
		}
		if sizes.IntN(3) == 0 {
			b.Flush()
		}
		data = data[n:]
	}
	b.End()
	return nil
}

// exchange sends data both ways at once and compares.
func (p *pair) exchange(t *testing.T, size int) {
	t.Helper()
	var all sync.WaitGroup
	for i, way := range []struct{ from, to *bundle }{{p.a, p.b}, {p.b, p.a}} {
		data := noise(uint64(i), size+i)
		all.Go(func() {
			if err := send(way.from, data); err != nil {
				t.Error("write:", err)
			}
		})
		all.Go(func() {
			got, err := io.ReadAll(way.to)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("read %d bytes (%x), want %d (%x): %v", len(got), sha256.Sum256(got), len(data), sha256.Sum256(data), err)
			}
		})
	}
	all.Wait()
}

func TestBundle(t *testing.T) {
	for _, lanes := range []int{1, 2, 5} {
		for _, window := range []int{maxFrame, 1 << 20, maxWindow} {
			t.Run(fmt.Sprintf("%d lanes, window %d", lanes, window), func(t *testing.T) {
				p := newPair(t, window)
				for range lanes {
					p.join(nil)
				}
				p.exchange(t, 3<<20)
			})
		}
	}
}

// TestBundleCut cuts all lanes but one, each somewhere.
func TestBundleCut(t *testing.T) {
	const size = 1 << 20
	for at := int64(0); at < size; at += 1<<16 + 4093 {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			p := newPair(t, 1<<20)
			p.join(nil)
			p.join(func(s io.ReadWriteCloser) io.ReadWriteCloser { return nixtest.CutWrites(s, at) })
			p.join(func(s io.ReadWriteCloser) io.ReadWriteCloser { return nixtest.CutReads(s, at) })
			p.exchange(t, size)
		})
	}
}

// TestBundleCutEverywhere cuts one of two lanes at every byte of a short exchange.
func TestBundleCutEverywhere(t *testing.T) {
	for at := range int64(400) {
		p := newPair(t, maxFrame)
		p.join(nil)
		p.join(func(s io.ReadWriteCloser) io.ReadWriteCloser { return nixtest.CutWrites(s, at) })
		p.exchange(t, 300)
	}
}

// TestBundleStalledLane has a lane that takes a frame and never delivers it: nothing
// goes beyond the window, and once the lane is given up all arrives.
func TestBundleStalledLane(t *testing.T) {
	p := newPair(t, 1<<20)
	near, far := nixtest.Pipe() // nobody reads the far end
	p.lanes.Go(func() { p.a.run(near, near, func() { near.Close() }) })
	data := noise(3, 3<<20)
	go send(p.a, data[:2<<20])
	first := make([]byte, 16)
	if _, err := far.Read(first); err != nil { // a frame is in the lane
		t.Fatal(err)
	}
	p.join(nil)
	near.Close()
	got := make([]byte, 2<<20)
	if _, err := io.ReadFull(p.b, got); err != nil || !bytes.Equal(got, data[:2<<20]) {
		t.Errorf("what arrived differs: %v", err)
	}
}

func TestBundleLost(t *testing.T) {
	p := newPair(t, 1<<20)
	p.join(func(s io.ReadWriteCloser) io.ReadWriteCloser { return nixtest.CutWrites(s, 1<<20) })
	go send(p.a, noise(1, 3<<20))
	got, err := io.ReadAll(p.b)
	if err == nil || len(got) > 1<<20 {
		t.Errorf("read %d bytes, error %v; want an error", len(got), err)
	}
	if _, err := p.a.Write(make([]byte, 8<<20)); err == nil {
		t.Error("Write succeeds without lanes")
	}
}

// dataFrame is a frame as it is on the wire.
func dataFrame(offset uint64, payload string) string {
	b := make([]byte, frameHeader)
	putFrameHeader(b, frameData, len(payload), offset)
	return string(b) + payload
}

func otherFrame(kind, length int, offset uint64, payload string) string {
	b := make([]byte, frameHeader)
	putFrameHeader(b, kind, length, offset)
	return string(b) + payload
}

func TestHostileFrames(t *testing.T) {
	for name, frames := range map[string]string{
		"unknown kind":       otherFrame(9, 0, 0, ""),
		"empty":              dataFrame(0, ""),
		"too long":           otherFrame(frameData, maxFrame+1, 0, ""),
		"beyond the window":  dataFrame(2*maxFrame, "x"),
		"offset overflows":   dataFrame(1<<64-1, "xy"),
		"overlaps":           dataFrame(1, "bcd") + dataFrame(2, "cde"),
		"overlaps in front":  dataFrame(2, "cde") + dataFrame(1, "bcd"),
		"same, but longer":   dataFrame(1, "b") + dataFrame(1, "bc"),
		"goes back half":     dataFrame(0, "abc") + dataFrame(1, "bcd"),
		"ack of nothing":     otherFrame(frameAck, 8, 1, "\x00\x00\x02\x00\x00\x00\x00\x00"),
		"ack without limit":  otherFrame(frameAck, 0, 0, ""),
		"grants too much":    otherFrame(frameAck, 8, 0, "\x00\x00\x04\x00\x00\x00\x00\x00"),
		"end before data":    dataFrame(0, "abc") + otherFrame(frameEnd, 0, 2, ""),
		"end before early":   dataFrame(5, "abc") + otherFrame(frameEnd, 0, 6, ""),
		"data behind end":    otherFrame(frameEnd, 0, 2, "") + dataFrame(1, "bc"),
		"two ends":           otherFrame(frameEnd, 0, 2, "") + otherFrame(frameEnd, 0, 3, ""),
		"end with a payload": otherFrame(frameEnd, 1, 0, "x"),
	} {
		t.Run(name, func(t *testing.T) {
			err := newBundle(maxFrame).readFrames(bytes.NewReader([]byte(frames)))
			if _, ok := errors.AsType[*wire.FormatError](err); !ok {
				t.Errorf("error is %v, want a *wire.FormatError", err)
			}
		})
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte(dataFrame(3, "def") + dataFrame(0, "abc") + otherFrame(frameEnd, 0, 6, "")))
	f.Add([]byte(otherFrame(frameAck, 8, 0, "\x00\x00\x02\x00\x00\x00\x00\x00")))
	f.Fuzz(func(t *testing.T, stream []byte) {
		b := newBundle(maxFrame)
		err := b.readFrames(bytes.NewReader(stream))
		b.fail(err)
		got, _ := io.ReadAll(b)
		if uint64(len(got)) != b.received || len(got) > len(stream) {
			t.Errorf("%d bytes were read, %d were received of %d", len(got), b.received, len(stream))
		}
	})
}

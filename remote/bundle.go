package remote

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/copy-closure/copy-closure/internal/wire"
)

const (
	frameHeader = 16        // bytes before a frame's payload
	maxFrame    = 128 << 10 // bytes of payload
	maxFrames   = 4096      // sent and not acknowledged, or received and not read
	maxQueued   = 8         // full frames that wait for a lane

	// lastWords is how long a lane that takes nothing any more is read.
	lastWords = time.Second

	ackFrames = 64 // an acknowledgement is due after so many frames
)

// Kinds of frames.
const (
	frameData = 1 // payload at an offset of the stream
	frameAck  = 2 // all before the offset has arrived; payload: u64 offset that may be sent up to
	frameEnd  = 3 // the stream ends at the offset
)

// A bundle is an ordered stream in each direction, carried by any number of lanes.
// What is written is cut into frames, and a frame goes over the lane that is free
// first; the receiver puts them in order. Frames that a lane took and did not deliver
// before it died are sent again over another. The receiver grants how far the sender
// may go ahead of its reader, so that neither side holds more than a window.
//
// Write may be called concurrently, Read by one goroutine.
type bundle struct {
	window uint64

	mu    sync.Mutex
	work  *sync.Cond // lanes have something to write
	space *sync.Cond // writers may go on
	data  *sync.Cond // the reader may go on
	lanes map[*lane]struct{}
	err   error // why the bundle ended

	// What is sent.
	next    uint64   // offset of the next byte that is written
	limit   uint64   // the offset that may be sent up to
	filling []byte   // header and payload of the frame that is being filled
	hurry   bool     // hand it on although it is not full
	queue   []*frame // for lanes to take, in order
	kept    []*frame // not acknowledged, in order; those of queue included
	ending  bool     // an end is to be announced behind all frames
	ender   *lane    // that it was given to
	ended   bool     // and has written it

	// What is received.
	received uint64   // all before has arrived
	early    []*frame // beyond received, in order, without overlaps
	ready    []*frame // before received, not yet read
	consumed uint64   // all before was read
	granted  uint64   // what the other side may send up to, as it knows
	unacked  int      // frames since the last acknowledgement
	ackDue   bool
	finalSet bool
	final    uint64 // where the other side's stream ends
}

// A frame is a piece of the stream.
type frame struct {
	offset uint64
	buf    []byte // header and payload
	read   int    // bytes of payload that the reader has taken
	lane   *lane  // that it was given to
	again  bool   // another lane had it before, and may be writing it still
}

func (f *frame) size() uint64 { return uint64(len(f.buf) - frameHeader) }
func (f *frame) end() uint64  { return f.offset + f.size() }

// newBundle returns a bundle without lanes, in which either side may be window bytes
// ahead of the other.
func newBundle(window int) *bundle {
	b := &bundle{
		window:  uint64(window),
		limit:   uint64(window),
		granted: uint64(window),
		lanes:   make(map[*lane]struct{}),
	}
	b.work, b.space, b.data = sync.NewCond(&b.mu), sync.NewCond(&b.mu), sync.NewCond(&b.mu)
	return b
}

// Write appends p to the stream. It waits while the other side's window is full.
func (b *bundle) Write(p []byte) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(p) > 0 {
		if err := b.awaitSpace(); err != nil {
			return n, err
		}
		if b.filling == nil {
			b.filling = frameBuffers.Get().(*frameBuffer)[:frameHeader]
		}
		some := min(len(p), frameHeader+maxFrame-len(b.filling), int(b.limit-b.next))
		b.filling = append(b.filling, p[:some]...)
		b.next += uint64(some)
		n, p = n+some, p[some:]
		if len(b.filling) == frameHeader+maxFrame {
			b.seal()
		}
	}
	return n, nil
}

// frameBuffers are for full frames.
var frameBuffers = sync.Pool{New: func() any { return new(frameBuffer) }}

type frameBuffer [frameHeader + maxFrame]byte

func (b *bundle) awaitSpace() error {
	for b.err == nil && !b.ending {
		full := b.next == b.limit || len(b.kept) >= maxFrames
		if !full && len(b.queue) < maxQueued {
			return nil
		}
		if full {
			b.flush()
		}
		b.space.Wait()
	}
	if b.err != nil {
		return b.err
	}
	return io.ErrClosedPipe
}

// seal makes a frame of what was gathered. One that is far from full gives its buffer
// back, as it may be kept for long.
func (b *bundle) seal() {
	buf := b.filling
	b.filling, b.hurry = nil, false
	if len(buf) < maxFrame/2 {
		small := slices.Clone(buf)
		frameBuffers.Put((*frameBuffer)(buf[:cap(buf)]))
		buf = small
	}
	f := &frame{offset: b.next - uint64(len(buf)-frameHeader), buf: buf}
	putFrameHeader(buf, frameData, len(buf)-frameHeader, f.offset)
	b.queue, b.kept = append(b.queue, f), append(b.kept, f)
	b.work.Signal()
}

func putFrameHeader(buf []byte, kind, length int, offset uint64) {
	binary.LittleEndian.PutUint32(buf, uint32(kind))
	binary.LittleEndian.PutUint32(buf[4:], uint32(length))
	binary.LittleEndian.PutUint64(buf[8:], offset)
}

// Flush hands on what was written, as soon as a lane is free for it.
func (b *bundle) Flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.flush()
}

func (b *bundle) flush() {
	if len(b.filling) > frameHeader {
		b.hurry = true
		b.work.Signal()
	}
}

// take waits for the next frame that a lane should write. It returns nil when there
// will be none.
func (b *bundle) take(l *lane) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.err == nil && !l.dead {
		if len(b.queue) == 0 && (b.hurry || b.ending) && len(b.filling) > frameHeader {
			b.seal()
		}
		switch {
		case b.ackDue || l.beat:
			l.beat = false
			return b.acknowledgement()
		case len(b.queue) > 0:
			f := b.queue[0]
			b.queue[0] = nil
			b.queue = b.queue[1:]
			f.lane = l
			if len(b.queue) > 0 {
				b.work.Signal()
			}
			b.space.Broadcast()
			return f.buf
		case b.ending && b.ender == nil:
			b.ender = l
			buf := make([]byte, frameHeader)
			putFrameHeader(buf, frameEnd, 0, b.next)
			return buf
		}
		b.work.Wait()
	}
	return nil
}

func (b *bundle) acknowledgement() []byte {
	b.ackDue, b.unacked = false, 0
	b.granted = b.consumed + b.window
	buf := make([]byte, frameHeader, frameHeader+8)
	putFrameHeader(buf, frameAck, 8, b.received)
	return binary.LittleEndian.AppendUint64(buf, b.granted)
}

// acknowledged takes the other side's word for what has arrived there.
func (b *bundle) acknowledged(received, limit uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if received > b.next || limit > received+b.window {
		return &wire.FormatError{Msg: "it acknowledges what was not sent, or grants more than a window"}
	}
	b.limit = max(b.limit, limit)
	n := 0
	for n < len(b.kept) && b.kept[n].end() <= received && b.kept[n].lane != nil {
		n++
	}
	b.recycle(b.kept[:n])
	b.kept = b.kept[n:]
	b.space.Broadcast()
	return nil
}

// recycle gives back the buffers of frames that no lane can be writing any more.
func (b *bundle) recycle(frames []*frame) {
	for i, f := range frames {
		if !f.again && !f.lane.dead && cap(f.buf) == frameHeader+maxFrame && f.lane.writing != &f.buf[0] {
			frameBuffers.Put((*frameBuffer)(f.buf[:cap(f.buf)]))
		}
		frames[i] = nil
	}
}

// expect checks the place of a frame before its payload is read. It reports whether
// the frame is new.
func (b *bundle) expect(offset uint64, length int) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	end := offset + uint64(length)
	switch {
	case length == 0 || length > maxFrame || end < offset:
		return false, &wire.FormatError{Msg: fmt.Sprintf("it sends a frame of %d bytes", length)}
	case end <= b.received:
		return false, nil
	case end > b.consumed+b.window || b.finalSet && end > b.final:
		return false, &wire.FormatError{Msg: "it sends more than it was granted"}
	case len(b.early)+len(b.ready) >= 2*maxFrames:
		return false, &wire.FormatError{Msg: "it sends too many frames"}
	}
	return true, nil
}

// arrive takes a frame in.
func (b *bundle) arrive(f *frame) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if f.end() <= b.received {
		return nil // another lane was faster
	}
	i, found := slices.BinarySearchFunc(b.early, f.offset, func(e *frame, offset uint64) int {
		return compareUint(e.offset, offset)
	})
	switch {
	case found && b.early[i].end() == f.end():
		return nil
	case found, f.offset < b.received,
		i > 0 && b.early[i-1].end() > f.offset,
		i < len(b.early) && b.early[i].offset < f.end():
		return &wire.FormatError{Msg: "it sends frames that overlap"}
	}
	b.early = slices.Insert(b.early, i, f)
	n := 0
	for n < len(b.early) && b.early[n].offset == b.received {
		b.received = b.early[n].end()
		n++
	}
	if n > 0 {
		b.ready = append(b.ready, b.early[:n]...)
		b.early = slices.Delete(b.early, 0, n)
		b.data.Signal()
	}
	b.unacked++
	b.ackIfDue()
	return nil
}

func compareUint(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// ackIfDue acknowledges what the other side should know soon.
func (b *bundle) ackIfDue() {
	if b.unacked >= ackFrames || b.consumed+b.window-b.granted >= b.window/8 {
		b.ackDue = true
		b.work.Signal()
	}
}

// finish takes the other side's word for where its stream ends.
func (b *bundle) finish(offset uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.finalSet && offset != b.final || offset < b.received || len(b.early) > 0 && b.early[len(b.early)-1].end() > offset {
		return &wire.FormatError{Msg: "it ends before what it sent"}
	}
	b.final, b.finalSet = offset, true
	b.data.Signal()
	return nil
}

// Read reads the other side's stream. It returns io.EOF where that side ended it, and
// else why the bundle ended.
func (b *bundle) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.ready) == 0 {
		switch {
		case b.finalSet && b.consumed == b.final:
			return 0, io.EOF
		case b.err != nil:
			return 0, b.err
		}
		b.data.Wait()
	}
	n := 0
	for len(b.ready) > 0 && n < len(p) {
		f := b.ready[0]
		some := copy(p[n:], f.buf[frameHeader+f.read:])
		n, f.read = n+some, f.read+some
		if uint64(f.read) < f.size() {
			break
		}
		if cap(f.buf) == frameHeader+maxFrame {
			frameBuffers.Put((*frameBuffer)(f.buf[:cap(f.buf)]))
		}
		b.ready[0] = nil
		b.ready = b.ready[1:]
	}
	b.consumed += uint64(n)
	b.ackIfDue()
	return n, nil
}

// End announces the end of what is written, and waits until that is written.
func (b *bundle) End() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ending = true
	b.work.Broadcast()
	for b.err == nil && !b.ended && len(b.lanes) > 0 {
		b.space.Wait()
	}
}

// fail ends the bundle; the first error counts. Lanes are closed by their owners.
func (b *bundle) fail(err error) {
	b.mu.Lock()
	if b.err == nil {
		b.err = unexpectedEnd(err)
	}
	lanes := make([]*lane, 0, len(b.lanes))
	for l := range b.lanes {
		lanes = append(lanes, l)
	}
	b.work.Broadcast()
	b.space.Broadcast()
	b.data.Broadcast()
	b.mu.Unlock()
	for _, l := range lanes {
		l.abort()
	}
}

// failure is why the bundle ended, nil if it goes on.
func (b *bundle) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// A lane is one of the streams that carry a bundle.
type lane struct {
	w     io.Writer
	abort func() // ends its reading and writing soon; may be called twice

	heard atomic.Bool // something was read since the last beat

	// Under the bundle's lock.
	dead    bool
	silent  int   // beats without anything
	beat    bool  // an acknowledgement is due, be there anything new or not
	writing *byte // the first byte of the frame that is being written
}

// run carries the bundle over a further stream until one of them ends, which it
// returns the reason of. When the last lane is gone, the bundle fails with that.
func (b *bundle) run(r io.Reader, w io.Writer, abort func()) error {
	l := &lane{w: w, abort: abort}
	b.mu.Lock()
	if b.err != nil {
		b.mu.Unlock()
		return b.err
	}
	b.lanes[l] = struct{}{}
	b.mu.Unlock()
	written, done := make(chan error, 1), make(chan struct{})
	go func() {
		err := b.writeFrames(l)
		if err != nil { // what the other side said before it went may still come
			late := time.AfterFunc(lastWords, abort)
			defer late.Stop()
		}
		written <- err
		<-done
	}()
	var beating sync.WaitGroup
	beating.Go(func() { b.keepAlive(l, done) })
	err := b.readFrames(hearing{r, l})
	close(done)
	beating.Wait()
	b.leave(l)
	writeErr := <-written
	switch {
	case l.silent == mostSilent:
		return errSilent
	case errors.Is(err, io.EOF) && writeErr != nil:
		return writeErr
	}
	return err
}

// leave gives the frames of a lane that has ended to others.
func (b *bundle) leave(l *lane) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l.dead = true
	delete(b.lanes, l)
	var again []*frame
	for _, f := range b.kept {
		if f.lane == l {
			f.lane, f.again = nil, true
			again = append(again, f)
		}
	}
	b.queue = append(again, b.queue...)
	slices.SortFunc(b.queue, func(x, y *frame) int { return compareUint(x.offset, y.offset) })
	if b.ender == l {
		b.ender = nil
	}
	b.ackDue = true // it may have taken one along
	b.work.Broadcast()
	b.space.Broadcast()
}

// alone reports whether no lane is left.
func (b *bundle) alone() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.lanes) == 0
}

func (b *bundle) writeFrames(l *lane) error {
	for {
		buf := b.take(l)
		if buf == nil {
			return nil
		}
		b.mark(l, &buf[0])
		_, err := l.w.Write(buf)
		b.mark(l, nil)
		if err != nil {
			return err
		}
	}
}

// mark says which frame l is writing, or that it has written one.
func (b *bundle) mark(l *lane, writing *byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l.writing = writing
	if writing == nil && b.ender == l && !b.ended {
		b.ended = true
		b.space.Broadcast()
	}
}

// readFrames returns io.EOF where the stream ends between two frames.
func (b *bundle) readFrames(r io.Reader) error {
	var header [frameHeader]byte
	for {
		if _, err := io.ReadFull(r, header[:]); err != nil {
			return err
		}
		kind := binary.LittleEndian.Uint32(header[:])
		length := int(binary.LittleEndian.Uint32(header[4:]))
		offset := binary.LittleEndian.Uint64(header[8:])
		if err := b.readFrame(r, kind, length, offset); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
}

func (b *bundle) readFrame(r io.Reader, kind uint32, length int, offset uint64) error {
	switch {
	case kind == frameData:
		return b.readData(r, length, offset)
	case kind == frameAck && length == 8:
		var limit [8]byte
		if _, err := io.ReadFull(r, limit[:]); err != nil {
			return err
		}
		return b.acknowledged(offset, binary.LittleEndian.Uint64(limit[:]))
	case kind == frameEnd && length == 0:
		return b.finish(offset)
	}
	return &wire.FormatError{Msg: fmt.Sprintf("it sends a frame of kind %d with %d bytes", kind, length)}
}

func (b *bundle) readData(r io.Reader, length int, offset uint64) error {
	fresh, err := b.expect(offset, length)
	if err != nil {
		return err
	}
	var buf []byte
	if length >= maxFrame/8*7 { // else the buffer would take much more than what counts against the window
		buf = frameBuffers.Get().(*frameBuffer)[:frameHeader+length]
	} else {
		buf = make([]byte, frameHeader+length)
	}
	if _, err := io.ReadFull(r, buf[frameHeader:]); err != nil || !fresh {
		return err
	}
	return b.arrive(&frame{offset: offset, buf: buf})
}

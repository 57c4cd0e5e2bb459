package nixtest

import (
	"bytes"
	"io"
	"sync"
	"time"
)

// pipeBuffer is how much a side of a Pipe may write ahead of its reader.
const pipeBuffer = 256 << 10

// Pipe returns both ends of a connection in memory. Each direction has a bounded
// buffer, so that pipelined requests do not block as they would with io.Pipe.
// Closing an end lets the other read what is left and then io.EOF; its writes fail.
func Pipe() (a, b io.ReadWriteCloser) {
	there, back := newHalfPipe(), newHalfPipe()
	return &pipeEnd{in: back, out: there}, &pipeEnd{in: there, out: back}
}

type pipeEnd struct{ in, out *halfPipe }

func (e *pipeEnd) Read(p []byte) (int, error)  { return e.in.read(p) }
func (e *pipeEnd) Write(p []byte) (int, error) { return e.out.write(p) }

// CloseWrite ends what the other side can read; this side can still read.
func (e *pipeEnd) CloseWrite() error {
	e.out.close(false)
	return nil
}

func (e *pipeEnd) Close() error {
	e.in.close(true)
	e.out.close(false)
	return nil
}

// A halfPipe is one direction.
type halfPipe struct {
	mu      sync.Mutex
	changed *sync.Cond
	buf     bytes.Buffer
	ended   bool // nothing more is written
	dropped bool // nothing more is read
}

func newHalfPipe() *halfPipe {
	h := new(halfPipe)
	h.changed = sync.NewCond(&h.mu)
	return h
}

func (h *halfPipe) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.buf.Len() == 0 && !h.ended && !h.dropped && len(p) > 0 {
		h.changed.Wait()
	}
	if h.dropped {
		return 0, io.ErrClosedPipe
	}
	h.changed.Broadcast()
	return h.buf.Read(p)
}

func (h *halfPipe) write(p []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(p) > 0 {
		for h.buf.Len() >= pipeBuffer && !h.ended && !h.dropped {
			h.changed.Wait()
		}
		if h.ended || h.dropped {
			return n, io.ErrClosedPipe
		}
		some := p[:min(len(p), pipeBuffer-h.buf.Len())]
		h.buf.Write(some)
		h.changed.Broadcast()
		n, p = n+len(some), p[len(some):]
	}
	return n, nil
}

func (h *halfPipe) close(drop bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	h.dropped = h.dropped || drop
	h.changed.Broadcast()
}

// CutReads returns rw, of which at most n bytes can be read: then the stream has
// ended, as it does when the other side dies.
func CutReads(rw io.ReadWriteCloser, n int64) io.ReadWriteCloser {
	return struct {
		io.Reader
		io.WriteCloser
	}{io.LimitReader(rw, n), rw}
}

// CutWrites returns rw, to which at most n bytes can be written: then rw is closed
// and writing fails with io.ErrClosedPipe.
func CutWrites(rw io.ReadWriteCloser, n int64) io.ReadWriteCloser {
	return &cutWriter{ReadWriteCloser: rw, left: n}
}

type cutWriter struct {
	io.ReadWriteCloser
	left int64
}

func (c *cutWriter) Write(p []byte) (int, error) {
	if int64(len(p)) <= c.left {
		c.left -= int64(len(p))
		return c.ReadWriteCloser.Write(p)
	}
	n, err := c.ReadWriteCloser.Write(p[:c.left])
	c.left = 0
	c.Close()
	if err == nil {
		err = io.ErrClosedPipe
	}
	return n, err
}

// FlipReads returns rw with a bit of the byte at offset n of what is read changed.
func FlipReads(rw io.ReadWriteCloser, n int64) io.ReadWriteCloser {
	return &flipReader{ReadWriteCloser: rw, at: n}
}

type flipReader struct {
	io.ReadWriteCloser
	at int64
}

func (f *flipReader) Read(p []byte) (int, error) {
	n, err := f.ReadWriteCloser.Read(p)
	if 0 <= f.at && f.at < int64(n) {
		p[f.at] ^= 1
	}
	f.at -= int64(n)
	return n, err
}

// delayBuffer is how many chunks are under way in each direction of Delay.
const delayBuffer = 1024

// Delay returns rw behind a line on which every byte is under way for d, in each
// direction, and many bytes at once. Close drops what is still under way; it ends
// with rw's Close and waits for the line's goroutines.
func Delay(rw io.ReadWriteCloser, d time.Duration) io.ReadWriteCloser {
	near, far := Pipe()
	line := &delayLine{ReadWriteCloser: near, far: far, rw: rw, closed: make(chan struct{})}
	line.carry(rw, far, d)
	line.carry(far, rw, d)
	return line
}

type delayLine struct {
	io.ReadWriteCloser
	far, rw io.ReadWriteCloser
	once    sync.Once
	closed  chan struct{}
	workers sync.WaitGroup
	err     error
}

// A parcel is data that arrives at a time, or the end of the stream.
type parcel struct {
	due  time.Time
	data []byte
	end  bool
}

// carry starts to move what comes from src to dst.
func (l *delayLine) carry(dst io.ReadWriteCloser, src io.Reader, d time.Duration) {
	parcels := make(chan parcel, delayBuffer)
	l.workers.Go(func() { l.collect(parcels, src, d) })
	l.workers.Go(func() { l.deliver(dst, parcels) })
}

func (l *delayLine) collect(parcels chan<- parcel, src io.Reader, d time.Duration) {
	defer close(parcels)
	for {
		b := make([]byte, 16<<10)
		n, err := src.Read(b)
		select {
		case parcels <- parcel{due: time.Now().Add(d), data: b[:n], end: err != nil}:
		case <-l.closed:
			return
		}
		if err != nil {
			return
		}
	}
}

func (l *delayLine) deliver(dst io.ReadWriteCloser, parcels <-chan parcel) {
	for p := range parcels {
		select {
		case <-time.After(time.Until(p.due)):
		case <-l.closed:
			return
		}
		if _, err := dst.Write(p.data); err != nil || p.end {
			closeWrite(dst)
			return
		}
	}
}

// closeWrite passes on the end of a stream.
func closeWrite(w io.Closer) {
	if half, ok := w.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
		return
	}
	w.Close()
}

func (l *delayLine) CloseWrite() error {
	closeWrite(l.ReadWriteCloser)
	return nil
}

func (l *delayLine) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.ReadWriteCloser.Close()
		l.far.Close()
		l.err = l.rw.Close()
		l.workers.Wait()
	})
	return l.err
}

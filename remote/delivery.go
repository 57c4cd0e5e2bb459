package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// Request asks for a NAR ahead of time and does not wait for it.
func (l *Lane) Request(ctx context.Context, info *nix.PathInfo) error {
	d := &Delivery{
		c:      l.c,
		ready:  make(chan struct{}),
		back:   make(chan struct{}),
		ended:  make(chan struct{}),
		stream: io.LimitedReader{N: info.NARSize},
	}
	l.mu.Lock()
	l.pending = append(l.pending, d)
	l.mu.Unlock()
	return l.dialect.request(ctx, l.c, info, d)
}

// request implements laneDialect.
func (s *Store) request(ctx context.Context, c *conn, info *nix.PathInfo, d *Delivery) error {
	return c.send(d.call(info, d.lend), true, func(w *wire.Writer) error {
		w.Uint64(cmdDumpStorePath)
		w.Path(info.Path)
		return nil
	})
}

// call is the request for the NAR, whose answer read reads.
func (d *Delivery) call(info *nix.PathInfo, read func(*wire.Reader) error) *call {
	return &call{
		what: "receive " + info.Path.String(),
		read: read,
		done: func(err error) { d.err = err; close(d.ended) },
	}
}

// Next waits for the NAR that was requested first and not yet taken. It must be
// closed before the following one is taken.
func (l *Lane) Next(ctx context.Context) (*Delivery, error) {
	l.mu.Lock()
	d := l.pending[0]
	l.pending = l.pending[1:]
	l.mu.Unlock()
	select {
	case <-d.ready:
		return d, nil
	case <-d.ended:
		return nil, d.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// A Delivery is a NAR on its way from the far end: as many bytes as its path info
// says. The reader must check that they are a NAR, and the right one.
type Delivery struct {
	c      *conn
	stream io.LimitedReader
	tail   []byte        // the last bytes that were read
	ready  chan struct{} // closed when stream is lent to the taker
	back   chan struct{} // closed when the taker gives it back
	given  bool          // back is closed
	last   error         // of reading; set before back is closed
	ended  chan struct{} // closed when the session is done with it
	err    error         // set before ended is closed
}

// lend runs on the session's reading goroutine: it stands aside while the taker
// reads, and skips what the taker left.
func (d *Delivery) lend(r *wire.Reader) error {
	d.stream.R = r.Raw()
	close(d.ready)
	select {
	case <-d.back:
	case <-d.c.closing:
		return errClosed
	}
	if d.last != nil {
		return d.last
	}
	if _, err := io.Copy(io.Discard, &d.stream); err != nil {
		return err
	}
	if d.stream.N > 0 {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// narEnd is the last token of every NAR.
const narEnd = "\x01\x00\x00\x00\x00\x00\x00\x00)\x00\x00\x00\x00\x00\x00\x00"

// errWrongEnd says that a NAR has another length than its path info says. Nix sends it
// as it is, and what follows it in the stream cannot be understood.
var errWrongEnd = fmt.Errorf("%w: the NAR does not end where its path info says", nix.ErrDamaged)

// Read reads the NAR. An error says how the far end failed.
func (d *Delivery) Read(p []byte) (int, error) {
	silent := time.AfterFunc(narSilence, d.giveUp)
	n, err := d.stream.Read(p)
	silent.Stop()
	d.tail = append(d.tail, p[max(0, n-len(narEnd)):n]...)
	d.tail = d.tail[max(0, len(d.tail)-len(narEnd)):]
	if n > 0 && d.stream.N == 0 && string(d.tail) != narEnd {
		n, err = n-1, errWrongEnd // who has read all asks no more
	}
	if err == nil || errors.Is(err, io.EOF) && d.stream.N == 0 {
		return n, err
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	d.last = err
	d.Close()
	<-d.ended
	return n, d.err
}

// giveUp ends the session of a far end that is silent.
func (d *Delivery) giveUp() {
	d.c.cause.CompareAndSwap(nil, &errSilentNAR)
	abortStream(d.c.stream)
}

// Reader returns d.
func (d *Delivery) Reader() io.Reader { return d }

// WriteTo writes the rest of the NAR to w.
func (d *Delivery) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{d})
}

// Close gives the session's stream back; the unread rest is skipped.
func (d *Delivery) Close() error {
	if !d.given {
		d.given = true
		close(d.back)
	}
	return nil
}

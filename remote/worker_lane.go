package remote

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// add implements laneDialect. AddMultipleToStore is not used: it would answer once for
// all its paths, and it saves no round trip where requests do not wait.
func (d *Daemon) add(ctx context.Context, c *conn, info *nix.PathInfo, nar io.WriterTo, done func(error)) error {
	if err := c.greet(ctx); err != nil {
		done(err)
		return err
	}
	a := &workerAdd{
		conn:     c,
		wanted:   make(chan uint64, 1),
		answered: make(chan struct{}),
		done:     done,
	}
	k := &call{
		what: "send " + info.Path.String(),
		read: func(r *wire.Reader) error { return c.readMessages(r, a.pulled) },
		done: a.decide,
	}
	err := c.send(k, false, func(w *wire.Writer) error {
		w.Uint64(opAddToStoreNAR)
		w.Path(info.Path)
		writeInfo(w, info)
		w.Bool(false) // repair
		w.Bool(true)  // take it without a signature, if this user may ask for that
		return a.writeNAR(w, info, nar)
	})
	if err == nil {
		err = a.sourceError()
	}
	return err
}

// A workerAdd is a path on its way to a daemon.
type workerAdd struct {
	conn     *conn
	wanted   chan uint64   // how many bytes the daemon asks for, if it does
	answered chan struct{} // closed when the daemon has decided
	done     func(error)
	source   atomic.Pointer[sourceError] // why the NAR could not be written
}

// decide tells what became of the path. That the daemon did not get a whole NAR says
// less than why it did not.
func (a *workerAdd) decide(err error) {
	close(a.answered)
	if ours := a.sourceError(); ours != nil {
		err = ours
	}
	a.done(err)
}

func (a *workerAdd) sourceError() error {
	if ours := a.source.Load(); ours != nil {
		return ours.err
	}
	return nil
}

// pulled is called on the reading goroutine where an old daemon asks for more.
func (a *workerAdd) pulled(n uint64) error {
	select {
	case a.wanted <- n:
		return nil
	default:
		return &wire.FormatError{Msg: "it asks for more before it has what it asked for"}
	}
}

// errAnswered ends the writing of a NAR that the daemon does not want any more.
var errAnswered = errors.New("answered before it was sent")

// writeNAR sends the NAR unless the daemon answers before. Where the NAR cannot be
// read, the daemon gets less than was announced, and the session goes on if it can.
func (a *workerAdd) writeNAR(w *wire.Writer, info *nix.PathInfo, nar io.WriterTo) error {
	if a.conn.version < workerFramed {
		err := writeNAR(&pullWriter{workerAdd: a, w: w}, info, nar)
		if errors.Is(err, errAnswered) {
			return nil
		}
		return err
	}
	frames := wire.NewFrameWriter(w)
	err := writeNAR(&frameOutput{a, frames}, info, nar)
	var ours *sourceError
	switch {
	case err == nil:
		return frames.Close()
	case errors.As(err, &ours):
		a.source.Store(ours)
	case !errors.Is(err, errAnswered):
		return err
	}
	frames.Abort()
	return nil
}

// A frameOutput ends with errAnswered where the daemon has decided.
type frameOutput struct {
	*workerAdd
	w io.Writer
}

func (o *frameOutput) Write(p []byte) (int, error) {
	select {
	case <-o.answered:
		return 0, errAnswered
	default:
		return o.w.Write(p)
	}
}

// A pullWriter hands out a NAR in the pieces that a daemon before 1.23 asks for.
type pullWriter struct {
	*workerAdd
	w *wire.Writer
}

func (o *pullWriter) Write(p []byte) (n int, err error) {
	for n < len(p) {
		if err := o.w.Flush(); err != nil {
			return n, err
		}
		select {
		case most := <-o.wanted:
			piece := p[n:][:min(uint64(len(p)-n), most)]
			o.w.String(string(piece))
			n += len(piece)
		case <-o.answered:
			return n, errAnswered
		case <-o.conn.ended:
			return n, o.conn.err
		}
	}
	return n, o.w.Flush()
}

// request implements laneDialect.
func (d *Daemon) request(ctx context.Context, c *conn, info *nix.PathInfo, delivery *Delivery) error {
	if err := c.greet(ctx); err != nil {
		return err
	}
	k := delivery.call(info, func(r *wire.Reader) error {
		if err := c.readMessages(r, nil); err != nil {
			return err
		}
		return delivery.lend(r)
	})
	return c.send(k, true, func(w *wire.Writer) error {
		w.Uint64(opNARFromPath)
		w.Path(info.Path)
		return nil
	})
}

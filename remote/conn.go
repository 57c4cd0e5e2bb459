// Package remote is a store at the far end of a stream: clients and servers of
// Nix's protocols. It knows nothing of how the stream comes about.
package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// Magic numbers and versions of the serve protocol; NIX.md has the bytes.
const (
	serveMagicClient = 0x390c9deb
	serveMagicServer = 0x5452eecb

	serveVersion    = 2<<8 | 7 // what we announce
	serveMinVersion = 2<<8 | 4 // the oldest server we talk to
	serveAddNAR     = 2<<8 | 5 // the first with AddToStoreNar
)

// A conn is one session with a far end: requests go out without waiting for the
// answers to those before, and answers come back in the same order.
type conn struct {
	stream  io.ReadWriteCloser
	dialect dialect
	dir     nix.StoreDir
	log     *slog.Logger

	writing sync.Mutex // held while one request is written
	w       *wire.Writer

	queue   callQueue
	greeted chan struct{} // closed when version and prelude are known, and requests may follow
	version uint64
	prelude prelude

	overhear func(string) // is told of what the far end says; for calls' read alone

	cause   atomic.Pointer[error] // our own reason to break off, if any
	closing chan struct{}         // closed by close
	once    sync.Once             // of closing
	ended   chan struct{}         // closed when the reading goroutine is gone
	err     error                 // why it went; set before ended is closed
}

// A dialect is how sessions of a protocol begin.
type dialect interface {
	name() string
	// hello writes what the client says without waiting.
	hello(w *wire.Writer)
	// greet reads the far end's greeting. It sets the conn's prelude and version,
	// and closes greeted.
	greet(c *conn, r *wire.Reader) error
}

// A refusal is an answer: the far end says why it could not do what it was asked,
// and goes on with the next request.
type refusal struct{ err error }

func (e *refusal) Error() string { return e.err.Error() }

// A call is a request whose answer is awaited.
type call struct {
	what string                     // for errors: "add /nix/store/…"
	read func(r *wire.Reader) error // reads the answer; runs on the conn's reading goroutine
	done func(error)                // called once, with nil after read returned nil
}

// newConn greets the far end, without waiting for its greeting, and starts reading.
func newConn(stream io.ReadWriteCloser, d dialect, dir nix.StoreDir, log *slog.Logger) *conn {
	c := &conn{
		stream:  stream,
		dialect: d,
		dir:     dir,
		log:     log,
		w:       wire.NewWriter(stream),
		greeted: make(chan struct{}),
		closing: make(chan struct{}),
		ended:   make(chan struct{}),
	}
	c.queue.init()
	d.hello(c.w)
	go c.readAnswers()
	return c
}

// greet waits for the far end's greeting.
func (c *conn) greet(ctx context.Context) error {
	select {
	case <-c.greeted:
		return nil
	default:
	}
	if err := c.flush(); err != nil {
		return err
	}
	select {
	case <-c.greeted:
		return nil
	case <-c.ended:
		return c.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// send queues a call and writes its request. It returns when the request is
// written, to a buffer unless flush is set. The call's done is called once in any
// case; an error of send means that the session is of no more use.
func (c *conn) send(k *call, flush bool, write func(w *wire.Writer) error) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if !c.queue.push(k) {
		<-c.ended
		k.done(c.abandoned())
		return c.abandoned()
	}
	err := write(c.w)
	if err == nil && flush {
		err = c.w.Flush()
	}
	if err != nil {
		return c.broken(err)
	}
	return nil
}

// flush hands on the requests that are still in the buffer.
func (c *conn) flush() error {
	c.writing.Lock()
	err := c.w.Flush()
	c.writing.Unlock() // the reading goroutine, which is waited for below, may greet
	if err != nil {
		return c.broken(err)
	}
	return nil
}

// broken ends the session in the middle of a request. Where the far end went away
// first, its own reason is better than our broken pipe.
func (c *conn) broken(err error) error {
	var ours *sourceError
	if errors.As(err, &ours) {
		c.cause.CompareAndSwap(nil, &ours.err)
	}
	c.stream.Close()
	<-c.ended
	if c.err != nil {
		return c.err
	}
	return err
}

// A sourceError marks a failure to produce what should be written, as opposed to
// one of writing it.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }

// ask sends a request and waits for its answer.
func (c *conn) ask(ctx context.Context, what string, write func(w *wire.Writer), read func(r *wire.Reader) error) error {
	answer := make(chan error, 1)
	k := &call{what: what, read: read, done: func(err error) { answer <- err }}
	err := c.send(k, true, func(w *wire.Writer) error { write(w); return nil })
	if err != nil {
		return err
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// readAnswers runs until the session ends, and then fails every call that is left.
func (c *conn) readAnswers() {
	defer close(c.ended)
	r := wire.NewReader(c.stream)
	blamed := false // a call had the error that ended the session
	if err := c.dialect.greet(c, r); err != nil {
		c.err = c.explain(err)
	}
	for c.err == nil {
		k := c.queue.pop()
		if k == nil {
			break
		}
		err := k.read(r)
		if err == nil {
			err = r.Err()
		}
		var refused *refusal
		if errors.As(err, &refused) {
			k.done(fmt.Errorf("%s: %w", k.what, refused.err))
			continue
		}
		if err != nil {
			c.err = fmt.Errorf("%s: %w", k.what, c.explain(err))
			k.done(c.err)
			blamed = true
			break
		}
		k.done(nil)
	}
	c.queue.close()
	for k := c.queue.pop(); k != nil; k = c.queue.pop() {
		if c.err != nil && !blamed {
			k.done(c.err)
			blamed = true
			continue
		}
		k.done(c.abandoned())
	}
}

// abandoned is the fate of a call that was not the one that failed.
func (c *conn) abandoned() error {
	if c.err == nil {
		return errClosed
	}
	return &abandonedError{c.err}
}

var errClosed = errors.New("session is closed")

// An abandonedError is that of a request which went down with its session.
type abandonedError struct{ err error }

func (e *abandonedError) Error() string { return "not confirmed: " + e.err.Error() }
func (e *abandonedError) Unwrap() error { return e.err }

// Consequence tells that this is not what went wrong first.
func (e *abandonedError) Consequence() bool { return true }

// explain turns the end of the stream into what the far end said of it.
func (c *conn) explain(err error) error {
	var format *wire.FormatError
	var prelude *preludeError
	gone := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	closeErr := c.stream.Close()
	ours := c.cause.Load()
	switch {
	case ours != nil:
		return *ours
	case errors.As(err, &prelude):
		if closeErr != nil {
			prelude.cause = farError(closeErr)
		}
		return prelude
	case errors.As(err, &format):
		return fmt.Errorf("the far end broke the protocol: %w", err)
	case errors.Is(err, errWrongEnd):
		return err // how a program ends that was closed in the middle of its work says nothing
	case closeErr != nil:
		return farError(closeErr)
	case gone:
		return &FarError{Text: "the far end closed the connection before it answered"}
	}
	return err
}

// close ends the session, which should have no unanswered calls, and returns how
// the far program ended.
func (c *conn) close() error {
	c.queue.close()
	c.once.Do(func() { close(c.closing) })
	err := c.stream.Close()
	<-c.ended
	return err
}

// A callQueue holds the calls that wait for their answers, in order.
type callQueue struct {
	mu     sync.Mutex
	wake   *sync.Cond
	calls  []*call
	closed bool
}

func (q *callQueue) init() { q.wake = sync.NewCond(&q.mu) }

// push appends k, unless the queue is closed.
func (q *callQueue) push(k *call) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.calls = append(q.calls, k)
	q.wake.Signal()
	return true
}

// pop waits for the next call; it returns nil once the queue is closed and empty.
func (q *callQueue) pop() *call {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.calls) == 0 && !q.closed {
		q.wake.Wait()
	}
	if len(q.calls) == 0 {
		return nil
	}
	k := q.calls[0]
	q.calls[0] = nil
	q.calls = q.calls[1:]
	return k
}

// close refuses further calls; those in the queue stay.
func (q *callQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wake.Broadcast()
}

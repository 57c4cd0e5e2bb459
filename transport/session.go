package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// closeGrace is how long Close waits for a command to end by itself after
	// the end of its input.
	closeGrace = 4 * time.Second
	// abortGrace is how long a command may take to end after it was told to.
	abortGrace = 1200 * time.Millisecond
	// lastWords is how long the end of a stream waits for the end of the
	// command, which tells whether it is a good end.
	lastWords = time.Second
)

// A process is a running command as one of the clients sees it. Its methods may be
// called at the same time; Write and CloseWrite by one caller at a time.
type process interface {
	io.ReadWriter
	CloseWrite() error
	wait() error // blocks until the command has ended and its stderr is read; called once
	interrupt()  // tells the command to end, without waiting
	kill()       // ends it, or gives it up; wait, Read and Write return soon
	release()    // gives back what it holds; called once, last
}

// A Session is a running command: Read reads its standard output, Write writes to
// its standard input. One reader and several writers may work at the same time.
//
// When the context that it was started with is cancelled, the command is told to end,
// and within two seconds all methods return the cause. A command on a built-in
// connection that does not end by then, though its input is closed and, where the host
// does that, a signal was sent, takes the connection and its other sessions along.
type Session struct {
	p       process
	login   Login         // of its connection; zero for a command of this machine
	ended   chan struct{} // closed when exit is known
	exit    error         // how the command ended
	cause   atomic.Pointer[error]
	writing sync.Mutex // held while a Write or CloseWrite is under way

	closing sync.Once
	result  error // of Close
}

// newSession takes over p.
func newSession(ctx context.Context, p process) *Session {
	s := &Session{p: p, ended: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { s.abort(context.Cause(ctx)) })
	go func() {
		s.exit = p.wait()
		stop()
		close(s.ended)
	}()
	return s
}

// Read reads from the command's standard output. It returns io.EOF when the command
// closed it, and the reason where the connection broke instead.
func (s *Session) Read(b []byte) (int, error) {
	n, err := s.p.Read(b)
	if err == nil || n > 0 {
		return n, nil
	}
	return 0, s.readError(err)
}

func (s *Session) readError(err error) error {
	exit := s.lastWords()
	if cause := s.cause.Load(); cause != nil {
		return *cause
	}
	// A broken connection looks like an end of the stream at first.
	if _, status := errors.AsType[*ExitError](exit); exit != nil && !status {
		return exit
	}
	return err
}

// lastWords returns how the command ended, and nil if it ended well or goes on.
func (s *Session) lastWords() error {
	if s.endsWithin(lastWords) {
		return s.exit
	}
	return nil
}

// Write writes to the command's standard input. Once the command has ended, the
// error says how.
func (s *Session) Write(b []byte) (int, error) {
	s.writing.Lock()
	n, err := s.p.Write(b)
	s.writing.Unlock()
	if err != nil {
		err = s.writeError(err)
	}
	return n, err
}

func (s *Session) writeError(err error) error {
	exit := s.lastWords()
	if cause := s.cause.Load(); cause != nil {
		return *cause
	}
	if exit != nil {
		return exit
	}
	if errors.Is(err, io.EOF) {
		return io.ErrClosedPipe
	}
	return err
}

// CloseWrite ends the command's standard input. What it still writes can be read.
func (s *Session) CloseWrite() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.p.CloseWrite()
}

// Close ends the command's standard input and waits for the command to end. One
// that goes on for four seconds, because it is stuck or because it writes what
// nobody reads, is ended; cancel the session's context to end it at once. Close
// returns nil if the command ended with status 0, an *ExitError if it ended
// otherwise. It may be called twice, and at the same time as all other methods.
func (s *Session) Close() error {
	s.closing.Do(func() {
		if s.writing.TryLock() {
			s.p.CloseWrite() // fails only if the command is gone
			s.writing.Unlock()
			if !s.endsWithin(closeGrace) {
				s.abort(fmt.Errorf("the command did not end when its input did"))
			}
		} else {
			s.abort(io.ErrClosedPipe) // a write is stuck in the middle
		}
		<-s.ended
		s.p.release()
		s.result = s.exit
		if cause := s.cause.Load(); cause != nil {
			s.result = *cause
		}
	})
	return s.result
}

// abort ends the command for the given reason and waits until that is done.
func (s *Session) abort(cause error) {
	select {
	case <-s.ended:
		return
	default:
	}
	s.cause.CompareAndSwap(nil, &cause)
	s.p.interrupt()
	if !s.endsWithin(abortGrace) {
		s.p.kill()
		<-s.ended
	}
}

// endsWithin waits for the command to end, and reports whether it has.
func (s *Session) endsWithin(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-s.ended:
		return true
	case <-timer.C:
		return false
	}
}

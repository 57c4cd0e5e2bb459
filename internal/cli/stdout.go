package cli

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// An output is standard output. A run whose output cannot be written fails, and ends
// early: nobody would see what it finds.
type output struct {
	w      io.Writer
	cancel context.CancelCauseFunc

	mu  sync.Mutex
	err error // the first, an *outputError
}

// openOutput returns standard output and a context that ends when it cannot be written.
// A reader who goes away is an error, not a signal that kills us in the middle of a copy.
func openOutput(ctx context.Context) (context.Context, *output) {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, &output{w: os.Stdout, cancel: cancel}
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return 0, o.err
	}
	n, err := o.w.Write(p)
	if err != nil {
		o.err = &outputError{err}
		o.cancel(o.err)
	}
	return n, o.err
}

// close returns err, the result of the run, or why its output was not written.
func (o *output) close(err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		err = o.err
	}
	o.cancel(nil)
	return err
}

// An outputError says that standard output could not be written. Whatever the cause, it
// is none of the destination's.
type outputError struct{ err error }

func (e *outputError) Error() string {
	cause := e.err
	if named, ok := errors.AsType[*fs.PathError](cause); ok {
		cause = named.Err
	}
	return "write standard output: " + cause.Error()
}

func (e *outputError) Unwrap() error { return e.err }

package cli

import (
	"context"
	"errors"
	"time"

	"github.com/copy-closure/copy-closure/internal/ui"
	"github.com/copy-closure/copy-closure/transport"
)

// defaultRetries is how often a copy goes on after its connection was lost.
const defaultRetries = 3

// firstPause is the time before the first new connection; it doubles each time.
const firstPause = time.Second

// retrying runs a copy, again where the connection was lost: what has arrived stays,
// and the rest is negotiated anew.
func (r *copyRun) retrying(ctx context.Context, run func(context.Context) error) error {
	for attempt := 0; ; attempt++ {
		err := run(ctx)
		if err == nil || attempt >= r.retries || ctx.Err() != nil || !isLost(err, attempt) {
			return err
		}
		if r.asked {
			r.log.Warn("the connection was lost; the same command goes on, and will ask for the password again")
			return err
		}
		pause := firstPause << attempt
		r.log.Warn(err.Error()+"; trying again", "after", ui.Seconds(pause), "attempt", attempt+2)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// isLost reports whether a new connection may help: one was lost, or could not be made
// again after that.
func isLost(err error, attempt int) bool {
	var lost *transport.LostError
	var connect *transport.ConnectError
	return errors.As(err, &lost) || attempt > 0 && errors.As(err, &connect)
}

// A notingPrompter remembers that a person was asked, which cannot be repeated without
// him.
type notingPrompter struct {
	transport.Prompter
	asked *bool
}

// Confirm implements transport.Prompter.
func (n notingPrompter) Confirm(ctx context.Context, question string) (bool, error) {
	*n.asked = true
	return n.Prompter.Confirm(ctx, question)
}

// Password implements transport.Prompter.
func (n notingPrompter) Password(ctx context.Context, prompt string) (string, error) {
	*n.asked = true
	return n.Prompter.Password(ctx, prompt)
}

// prompter asks the person at the terminal, if there is one, and remembers that.
func (r *copyRun) prompter() transport.Prompter {
	ask := prompter()
	if ask == nil {
		return nil
	}
	return notingPrompter{ask, &r.asked}
}

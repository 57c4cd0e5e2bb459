package cli

import (
	"context"
	"errors"
	"time"

	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/progress"
	"github.com/copy-closure/copy-closure/internal/ui"
	"github.com/copy-closure/copy-closure/remote"
	"github.com/copy-closure/copy-closure/transport"
)

// defaultRetries is how often a copy goes on after its connection was lost.
const defaultRetries = 3

const (
	firstPause = time.Second // before the first new connection; it doubles each time
	mostPause  = 30 * time.Second

	// A copy of which nothing but a part of a path arrives has come further if that
	// was so many bytes: of less, nothing may be kept.
	muchOfAPath = 2 * localstore.WorthKeeping
)

// retrying runs a copy, again where the connection was lost: what has arrived stays,
// and the rest is negotiated anew. Only attempts in a row that bring nothing count.
func (r *copyRun) retrying(ctx context.Context, run func(context.Context) error) error {
	lost := false
	for attempt := 0; ; attempt++ {
		r.gained, r.kept = false, 0
		err := run(ctx)
		if errors.Is(err, remote.ErrDelta) && r.delta != "never" && ctx.Err() == nil {
			r.delta = "never"
			r.log.Warn(err.Error() + "; going on without deltas")
			err = run(ctx)
		}
		if r.gained {
			attempt = 0
		}
		if err == nil || attempt >= r.retries || ctx.Err() != nil || !isLost(err, lost) {
			return err
		}
		if r.asked {
			r.log.Warn("the connection was lost; the same command goes on, and will ask for the password again")
			return err
		}
		lost = true
		pause := min(firstPause<<min(attempt, 10), mostPause)
		r.log.Warn(err.Error()+"; trying again", "after", ui.Seconds(pause))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// isLost reports whether a new connection may help: one was lost, or could not be made
// again after that.
func isLost(err error, before bool) bool {
	var lost *transport.LostError
	var connect *transport.ConnectError
	return errors.As(err, &lost) || before && errors.As(err, &connect)
}

// countGain notes whether an attempt has brought something that stays.
func (r *copyRun) countGain(far *farEnd, s progress.State) {
	r.gained = s.DonePaths > 0 || far.peer != nil && s.DoneBytes-r.kept >= muchOfAPath
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

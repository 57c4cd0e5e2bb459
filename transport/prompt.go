package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// A Prompter asks the person at the terminal. Its methods are called one at a time
// for a connection, and return when ctx is cancelled.
type Prompter interface {
	// Password asks for a secret, which is not shown while it is typed.
	Password(ctx context.Context, prompt string) (string, error)
	// Confirm asks a question that is answered with yes or no.
	Confirm(ctx context.Context, question string) (bool, error)
}

// A TerminalPrompter asks on the controlling terminal of the process, whatever the
// standard streams are. The zero value is ready; it may be used by several
// connections at once, which then wait for each other.
type TerminalPrompter struct {
	// Show makes the words of a host fit for the terminal; nil shows them as they are.
	Show func(string) string

	mu sync.Mutex
}

func (p *TerminalPrompter) shown(text string) string {
	if p.Show == nil {
		return text
	}
	return p.Show(text)
}

// HaveTerminal reports whether the process has a controlling terminal, and so
// whether there is anybody whom a TerminalPrompter could ask.
func HaveTerminal() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	tty.Close()
	return true
}

// Password implements Prompter.
func (p *TerminalPrompter) Password(ctx context.Context, prompt string) (answer string, err error) {
	err = p.ask(ctx, func(t *term.Terminal) error {
		answer, err = t.ReadPassword(p.shown(prompt))
		return err
	})
	return answer, err
}

// Confirm implements Prompter. Anything but yes and no is asked again.
func (p *TerminalPrompter) Confirm(ctx context.Context, question string) (yes bool, err error) {
	err = p.ask(ctx, func(t *term.Terminal) error {
		fmt.Fprintln(t, p.shown(question))
		t.SetPrompt("Type yes or no: ")
		for {
			answer, err := t.ReadLine()
			if err != nil {
				return err
			}
			switch strings.ToLower(strings.TrimSpace(answer)) {
			case "yes":
				yes = true
				return nil
			case "no":
				return nil
			}
		}
	})
	return yes, err
}

// ask puts the terminal into raw mode for the time of f. A Ctrl-C, which then is
// only a character, becomes the signal that it stands for.
func (p *TerminalPrompter) ask(ctx context.Context, f func(*term.Terminal) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("ask at the terminal: %w", err)
	}
	defer tty.Close()
	restore, err := makeRaw(tty)
	if err != nil {
		return fmt.Errorf("ask at the terminal: %w", err)
	}
	defer restore()
	// Where the system cannot wait for a terminal with a deadline, a cancelled
	// question ends with the next key.
	stop := context.AfterFunc(ctx, func() { tty.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	keys := &keyReader{File: tty}
	err = f(term.NewTerminal(keys, ""))
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case keys.interrupted:
		unix.Kill(os.Getpid(), unix.SIGINT)
		return context.Canceled
	case errors.Is(err, io.EOF):
		return errors.New("no answer")
	}
	return err
}

// makeRaw does not use tty.Fd, which would take the deadlines away.
func makeRaw(tty *os.File) (restore func(), err error) {
	raw, err := tty.SyscallConn()
	if err != nil {
		return nil, err
	}
	var state *term.State
	var termErr error
	if err := raw.Control(func(fd uintptr) { state, termErr = term.MakeRaw(int(fd)) }); err != nil {
		return nil, err
	}
	if termErr != nil {
		return nil, termErr
	}
	return func() {
		raw.Control(func(fd uintptr) { term.Restore(int(fd), state) })
	}, nil
}

// A keyReader notices Ctrl-C.
type keyReader struct {
	*os.File
	interrupted bool
}

func (r *keyReader) Read(b []byte) (int, error) {
	const ctrlC = 3
	n, err := r.File.Read(b)
	for _, key := range b[:n] {
		r.interrupted = r.interrupted || key == ctrlC
	}
	return n, err
}

package transport_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/copy-closure/copy-closure/transport"
)

func local(t *testing.T, ctx context.Context, script string) *transport.Session {
	t.Helper()
	s, err := transport.LocalCommand(ctx, []string{"sh", "-c", script}, nil, testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLocalCommand(t *testing.T) {
	s := local(t, t.Context(), "cat; echo bye >&2; exit 4")
	echoes(t, s)
	s.CloseWrite()
	if rest, err := io.ReadAll(s); len(rest) != 0 || err != nil {
		t.Errorf("read %q, %v", rest, err)
	}
	err := s.Close()
	exit, ok := errors.AsType[*transport.ExitError](err)
	if !ok || exit.Status != 4 || exit.Stderr != "bye\n" {
		t.Errorf("got %v", err)
	}
	if again := s.Close(); again != err {
		t.Errorf("closed again: %v", again)
	}
	if _, err := s.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("read after Close: %v", err)
	}

	if _, err := transport.LocalCommand(t.Context(), []string{"/nonexistent"}, nil, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing program: %v", err)
	}
	if _, err := transport.LocalCommand(t.Context(), nil, nil, nil); err == nil {
		t.Error("no command, and no error")
	}
}

func TestLocalCommandEnvironment(t *testing.T) {
	s, err := transport.LocalCommand(t.Context(), []string{"/bin/sh", "-c", "echo $A"}, []string{"A=b"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := io.ReadAll(s); string(out) != "b\n" || err != nil {
		t.Errorf("got %q, %v", out, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestWriteToDeadCommand(t *testing.T) {
	s := local(t, t.Context(), "exec <&-; echo no room >&2; exit 1")
	io.Copy(io.Discard, s)
	var err error
	for err == nil {
		_, err = s.Write(make([]byte, 1<<20))
	}
	if _, ok := errors.AsType[*transport.ExitError](err); !ok || !strings.Contains(err.Error(), "no room") {
		t.Errorf("got %v", err)
	}
	s.Close()
}

func TestLocalSignal(t *testing.T) {
	s := local(t, t.Context(), "kill -KILL $$")
	exit, ok := errors.AsType[*transport.ExitError](s.Close())
	if !ok || exit.Signal != "KILL" || exit.Status != -1 {
		t.Errorf("got %+v", exit)
	}
}

// Cancelling reaches the children of the command, and a command that is deaf to
// SIGTERM.
func TestCancelLocalCommand(t *testing.T) {
	for name, script := range map[string]string{
		"children": "sleep 1000 & wait",
		"deaf":     `trap "" TERM; echo; while :; do sleep 1000; done`,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			s := local(t, ctx, "echo; "+script)
			if _, err := s.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			reason := errors.New("enough")
			cancel(reason)
			if _, err := io.Copy(io.Discard, s); !errors.Is(err, reason) {
				t.Errorf("read: %v", err)
			}
			if err := s.Close(); !errors.Is(err, reason) {
				t.Errorf("close: %v", err)
			}
		})
	}
}

// Close works while a write is stuck, and several times at once.
func TestCloseWhileWriting(t *testing.T) {
	s := local(t, t.Context(), "echo; exec sleep 1000")
	if _, err := s.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	began, wrote := make(chan struct{}), make(chan error)
	go func() {
		s.Write(make([]byte, 1)) // into the pipe
		close(began)
		_, err := s.Write(make([]byte, 1<<20))
		wrote <- err
	}()
	<-began
	var closing sync.WaitGroup
	for range 3 {
		closing.Go(func() {
			if err := s.Close(); err == nil {
				t.Error("close: no error")
			}
		})
	}
	if err := <-wrote; err == nil {
		t.Error("write: no error")
	}
	closing.Wait()
}

// What a command leaves behind does not keep Close waiting.
func TestOrphan(t *testing.T) {
	s := local(t, t.Context(), "sleep 1000 & echo $!")
	var pid int
	if _, err := fmt.Fscan(s, &pid); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pid, syscall.SIGKILL)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// count returns the numbers from 1 to n, each on a line.
func count(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "\n  %d", i+1)
	}
	return strings.TrimSpace(b.String())
}

// TestErrorLines wants the whole of an error that Nix writes, without its colours.
func TestErrorLines(t *testing.T) {
	for script, want := range map[string]string{
		`printf 'noise\n\033[31;1merror:\033[0m no\n       … while a\n       error: really\n' >&2; exit 1`: "no\n       … while a\n       error: really",
		`printf 'error:\n       … while a\n\n' >&2; exit 1`:                                                "… while a",
		`printf 'error: a\n  more\n\nerror: b\n' >&2; exit 1`:                                              "a\n  more\n\nerror: b",
		`printf 'error: a\nwarning: w\nerror: b\n' >&2; exit 1`:                                            "b",
		`printf 'error: a\n  more\n' >&2; kill -9 $$`:                                                      "killed by signal KILL: a\n  more",
		`{ printf 'error:\n'; seq -f '  %.0f' 20; } >&2; exit 1`:                                           count(20),
		`{ printf 'error:\n'; seq -f '  %.0f' 99; } >&2; exit 1`:                                           count(19) + "\n… (80 more lines)",
		`echo 'no error: a' >&2; exit 1`:                                                                   "exit status 1: no error: a",
	} {
		exit, ok := errors.AsType[*transport.ExitError](local(t, t.Context(), script).Close())
		if !ok || exit.Reason() != want {
			t.Errorf("%s: %q, want %q", script, exit.Reason(), want)
		}
	}
}

func TestStderr(t *testing.T) {
	s := local(t, t.Context(), `seq -f 'line %.0f' 0 1999 >&2; printf '\033]0;title\007\033[1;31mred\033[m\r\rx\342\200\256y\300\tz' >&2; exit 1`)
	exit, ok := errors.AsType[*transport.ExitError](s.Close())
	if !ok {
		t.Fatal("no ExitError")
	}
	if len(exit.Stderr) > 16<<10 || !strings.HasSuffix(exit.Stderr, "line 1999\n\x1b]0;title\a\x1b[1;31mred\x1b[m\r\rx\u202ey\xc0\tz\n") {
		t.Errorf("%d bytes, ending in %q", len(exit.Stderr), exit.Stderr[len(exit.Stderr)-40:])
	}
}

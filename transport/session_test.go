package transport_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/transport"
)

func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// output runs a command to its end.
func output(t testing.TB, conn transport.Conn, command string) (string, error) {
	t.Helper()
	s, err := conn.Start(t.Context(), command)
	if err != nil {
		t.Fatalf("start %s: %v", command, err)
	}
	s.CloseWrite()
	out, err := io.ReadAll(s)
	if err != nil {
		t.Errorf("read: %v", err)
	}
	return string(out), s.Close()
}

func TestSession(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		h, s := newHost(t), newSetup(t)
		s.add("there", h)
		s.options.Program = program
		conn := s.mustDial("there")

		t.Run("output", func(t *testing.T) {
			out, err := output(t, conn, "echo hello; echo '  world'")
			if out != "hello\n  world\n" || err != nil {
				t.Errorf("got %q, %v", out, err)
			}
		})
		t.Run("echo", func(t *testing.T) {
			s, err := conn.Start(t.Context(), "cat")
			if err != nil {
				t.Fatal(err)
			}
			// Written before anything is known of the command.
			if _, err := io.WriteString(s, "ping"); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 4)
			if _, err := io.ReadFull(s, buf); err != nil || string(buf) != "ping" {
				t.Errorf("got %q, %v", buf, err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		t.Run("exit status and stderr", func(t *testing.T) {
			_, err := output(t, conn, `printf 'one\n\033[31mtwo\033[0m\a\n' >&2; exit 3`)
			exit, ok := errors.AsType[*transport.ExitError](err)
			if !ok {
				t.Fatalf("got %v, want an ExitError", err)
			}
			if exit.Status != 3 || exit.Stderr != "one\n\x1b[31mtwo\x1b[0m\a\n" || exit.Signal != "" {
				t.Errorf("got %+v", exit)
			}
			if !strings.HasSuffix(err.Error(), "exit status 3: \x1b[31mtwo\x1b[0m\a") {
				t.Errorf("got %q", err)
			}
		})
		t.Run("several sessions", func(t *testing.T) {
			var all []*transport.Session
			for range 4 {
				s, err := conn.Start(t.Context(), "cat")
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, s)
			}
			for _, s := range all {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		})
		if got := h.connections(); got != 1 {
			t.Errorf("%d connections, want 1", got)
		}
	})
}

func TestCancelBlockedRead(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		h, s := newHost(t), newSetup(t)
		s.add("there", h)
		s.options.Program = program
		conn := s.mustDial("there")
		ctx, cancel := context.WithCancelCause(t.Context())
		blocked, err := conn.Start(ctx, "cat")
		if err != nil {
			t.Fatal(err)
		}
		reason := errors.New("enough")
		read := make(chan error)
		go func() {
			_, err := blocked.Read(make([]byte, 1))
			read <- err
		}()
		cancel(reason)
		if err := <-read; !errors.Is(err, reason) {
			t.Errorf("read: %v", err)
		}
		if err := blocked.Close(); !errors.Is(err, reason) {
			t.Errorf("close: %v", err)
		}
		if out, err := output(t, conn, "echo still here"); out != "still here\n" || err != nil {
			t.Errorf("the connection is gone: %q, %v", out, err)
		}
	})
}

// A command that neither reads nor can be signalled (sshd does not signal commands of
// root) never ends: its caller is free all the same.
func TestCancelStuckCommand(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		h, s := newHost(t), newSetup(t)
		s.add("there", h)
		s.options.Program = program
		conn := s.mustDial("there")
		ctx, cancel := context.WithCancelCause(t.Context())
		stuck, err := conn.Start(ctx, "echo started; exec sleep 6")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stuck.Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		reason := errors.New("enough")
		cancel(reason)
		if _, err := stuck.Read(make([]byte, 1)); !errors.Is(err, reason) {
			t.Errorf("read: %v", err)
		}
		if err := stuck.Close(); !errors.Is(err, reason) {
			t.Errorf("close: %v", err)
		}
	})
}

func TestMaxSessions(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		h, s := newHost(t, "MaxSessions 2"), newSetup(t)
		s.add("there", h)
		s.options.Program = program
		conn := s.mustDial("there")
		var all []*transport.Session
		for range 2 {
			s, err := conn.Start(t.Context(), "cat")
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
			echoes(t, s) // so that ssh, too, has asked for it
		}
		third, err := conn.Start(t.Context(), "cat")
		if err == nil {
			_, err = third.Read(make([]byte, 1))
		}
		if !errors.Is(err, transport.ErrSessionRefused) {
			t.Errorf("third session: %v", err)
		}
		for _, s := range all {
			echoes(t, s)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
		if got := h.connections(); got != 1 {
			t.Errorf("%d connections, want 1", got)
		}
	})
}

// Reserved sessions are used by later ones; one too many is refused when it is used.
func TestReserve(t *testing.T) {
	h, s := newHost(t, "MaxSessions 2"), newSetup(t)
	s.add("there", h)
	s.options.Program = transport.ProgramBuiltin
	conn := s.mustDial("there")
	conn.Reserve(3)
	for range 2 {
		session, err := conn.Start(t.Context(), "cat")
		if err != nil {
			t.Fatal(err)
		}
		echoes(t, session)
	}
	if _, err := conn.Start(t.Context(), "cat"); !errors.Is(err, transport.ErrSessionRefused) {
		t.Errorf("third session: %v", err)
	}
}

// echoes fails the test if a session of cat does not answer.
func echoes(t *testing.T, s *transport.Session) {
	t.Helper()
	if _, err := io.WriteString(s, "ping"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4)
	if _, err := io.ReadFull(s, buf); err != nil || string(buf) != "ping" {
		t.Errorf("got %q, %v", buf, err)
	}
}

// The end of a connection is never taken for the end of a command.
func TestConnectionLost(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		h, s := newHost(t), newSetup(t)
		s.add("there", h)
		s.options.Program = program
		conn := s.mustDial("there")
		session, err := conn.Start(t.Context(), "cat")
		if err != nil {
			t.Fatal(err)
		}
		echoes(t, session)
		h.kill()
		_, err = session.Read(make([]byte, 1))
		if _, ok := errors.AsType[*transport.LostError](err); !ok {
			t.Errorf("read: got %v, want a LostError", err)
		}
		if err := session.Close(); err == nil {
			t.Error("close: no error")
		}
		if s, err := conn.Start(t.Context(), "true"); err == nil {
			if err := s.Close(); err == nil {
				t.Error("a command ran without a connection")
			}
		}
	})
}

func TestKilledBySignal(t *testing.T) {
	h, s := newHost(t), newSetup(t)
	s.add("there", h)
	s.options.Program = transport.ProgramBuiltin
	_, err := output(t, s.mustDial("there"), "kill -TERM $$")
	exit, ok := errors.AsType[*transport.ExitError](err)
	if !ok || exit.Signal != "TERM" || exit.Status != -1 {
		t.Errorf("got %v", err)
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("LC_TEST_SENT", "sent by us")
	eachProgram(t, func(t *testing.T, program string) {
		h, s := newHost(t), newSetup(t)
		s.add("there", h, "SendEnv LC_TEST_*", `SetEnv LC_TEST_SET="set here"`)
		s.options.Program = program
		out, err := output(t, s.mustDial("there"), `echo "$LC_TEST_SENT, $LC_TEST_SET"`)
		if out != "sent by us, set here\n" || err != nil {
			t.Errorf("got %q, %v", out, err)
		}
	})
}

// Much data in both directions at once, in pieces of all sizes.
func TestThroughput(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		h, s := newHost(t), newSetup(t)
		s.add("there", h)
		s.options.Program = program
		session, err := s.mustDial("there").Start(t.Context(), "cat")
		if err != nil {
			t.Fatal(err)
		}
		const size = 16 << 20
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(i>>8 ^ i)
		}
		written := make(chan error, 1)
		go func() {
			for rest, n := data, 1; len(rest) > 0; n = n*3 + 1 {
				n = min(n%(1<<20)+1, len(rest))
				if _, err := session.Write(rest[:n]); err != nil {
					written <- err
					return
				}
				rest = rest[n:]
			}
			written <- session.CloseWrite()
		}()
		back, err := io.ReadAll(session)
		if err != nil || !bytes.Equal(back, data) {
			t.Errorf("%d bytes came back of %d: %v", len(back), size, err)
		}
		if err := <-written; err != nil {
			t.Error(err)
		}
		if err := session.Close(); err != nil {
			t.Error(err)
		}
	})
}

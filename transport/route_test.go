package transport_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/copy-closure/copy-closure/transport"
)

func TestProxyJump(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		one, two, target := newHost(t), newHost(t), newHost(t)
		s := newSetup(t)
		s.add("one", one)
		s.add("two", two)
		s.add("target", target, "ProxyJump one,two")
		s.options.Program = program
		works(t, s.mustDial("target"))
		for i, h := range []*host{one, two, target} {
			if h.connections() != 1 {
				t.Errorf("host %d: %d connections, want 1", i, h.connections())
			}
		}
	})
}

func TestProxyJumpOption(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		one, target := newHost(t), newHost(t)
		s := newSetup(t)
		s.add("one", one)
		s.add("target", target)
		s.options.Program = program
		s.options.SSHOptions = append(s.options.SSHOptions, "-J", "one")
		works(t, s.mustDial("target"))
		if one.connections() != 1 {
			t.Errorf("%d connections by the jump host, want 1", one.connections())
		}
	})
}

func TestJumpHostRefuses(t *testing.T) {
	one, target := newHost(t), newHost(t)
	one.userKey = newKey(t, filepath.Join(one.dir, "stranger"), "")
	s := newSetup(t)
	s.add("one", one)
	s.add("target", target, "ProxyJump one")
	s.options.Program = transport.ProgramBuiltin
	_, err := s.dial(t.Context(), "target")
	if _, ok := errors.AsType[*transport.AuthError](err); !ok || !strings.HasPrefix(err.Error(), "jump host one: ") {
		t.Errorf("got %v", err)
	}
}

func TestProxyCommand(t *testing.T) {
	nc := needProgram(t, "bash")
	eachProgram(t, func(t *testing.T, program string) {
		h, s := newHost(t), newSetup(t)
		s.know(h.knownAs(fmt.Sprintf("[far.example]:%d", h.port())))
		used := filepath.Join(s.dir, "used")
		script := filepath.Join(s.dir, "proxy")
		write(t, script, `exec 3<>"/dev/tcp/127.0.0.1/$2"; echo "$1 $2 $3 %" > `+used+`; cat <&3 & cat >&3; kill $!`)
		s.addUnknown("there", h, "ProxyCommand "+nc+" "+script+" %h %p %n", "HostName far.example")
		s.options.Program = program
		works(t, s.mustDial("there"))
		if got, want := read(t, used), fmt.Sprintf("far.example %d there %%\n", h.port()); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestProxyCommandFails(t *testing.T) {
	h, s := newHost(t), newSetup(t)
	s.add("there", h, "ProxyCommand sh -c 'echo no way >&2; exit 7'")
	s.options.Program = transport.ProgramBuiltin
	_, err := s.dial(t.Context(), "there")
	if _, ok := errors.AsType[*transport.ConnectError](err); !ok || !strings.Contains(err.Error(), "exit status 7: no way") {
		t.Errorf("got %v", err)
	}
}

func TestNotReached(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := &host{t: t, address: l.Addr(), hostKey: newKey(t, filepath.Join(t.TempDir(), "host"), ""), userKey: key{file: "/nonexistent"}}
	l.Close()
	eachProgram(t, func(t *testing.T, program string) {
		s := newSetup(t)
		s.options.Program = program
		s.add("closed", closed)
		s.add("nowhere", closed, "HostName nowhere.invalid")
		for _, alias := range []string{"closed", "nowhere"} {
			_, err := s.dial(t.Context(), alias)
			if _, ok := errors.AsType[*transport.ConnectError](err); !ok {
				t.Errorf("%s: got %v, want a ConnectError", alias, err)
			}
		}
	})
}

// silent is a server that accepts connections and says nothing.
func silent(t *testing.T) *host {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				io.Copy(io.Discard, conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return &host{t: t, address: l.Addr(), hostKey: newKey(t, filepath.Join(t.TempDir(), "host"), ""), userKey: key{file: "/nonexistent"}}
}

func TestSilentServer(t *testing.T) {
	s := newSetup(t)
	s.add("silent", silent(t), "ConnectTimeout 1")
	s.options.Program = transport.ProgramBuiltin
	_, err := s.dial(t.Context(), "silent")
	if _, ok := errors.AsType[*transport.ConnectError](err); !ok || !strings.Contains(err.Error(), "no answer within 1s") {
		t.Errorf("got %v", err)
	}
}

func TestCancelDial(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		s := newSetup(t)
		s.add("silent", silent(t))
		s.options.Program = program
		ctx, cancel := context.WithCancelCause(t.Context())
		reason := errors.New("enough")
		time.AfterFunc(100*time.Millisecond, func() { cancel(reason) })
		if _, err := s.dial(ctx, "silent"); !errors.Is(err, reason) {
			t.Errorf("got %v", err)
		}
	})
}

// A relay passes a connection on until it is frozen.
type relay struct {
	address net.Addr
	frozen  chan struct{}
}

func newRelay(t *testing.T, to net.Addr) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{address: l.Addr(), frozen: make(chan struct{})}
	done := make(chan struct{})
	var relaying sync.WaitGroup
	pass := func(to, from net.Conn) {
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			select {
			case <-r.frozen:
				<-done
			default:
			}
			if err != nil {
				to.Close()
				return
			}
			to.Write(buf[:n])
		}
	}
	relaying.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to.String())
			if err != nil {
				near.Close()
				continue
			}
			relaying.Go(func() { pass(near, far) })
			relaying.Go(func() { pass(far, near) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		close(done)
		relaying.Wait()
	})
	return r
}

func TestDeadLink(t *testing.T) {
	h, s := newHost(t), newSetup(t)
	r := newRelay(t, h.address)
	h.address = r.address
	s.add("there", h, "ServerAliveInterval 1", "ServerAliveCountMax 1")
	s.options.Program = transport.ProgramBuiltin
	conn := s.mustDial("there")
	session, err := conn.Start(t.Context(), "cat")
	if err != nil {
		t.Fatal(err)
	}
	close(r.frozen)
	_, err = session.Read(make([]byte, 1))
	if _, ok := errors.AsType[*transport.LostError](err); !ok || !strings.Contains(err.Error(), "no answer for 2s") {
		t.Errorf("read: %v", err)
	}
	if err := session.Close(); err == nil {
		t.Error("close: no error")
	}
}

func TestKeepAlive(t *testing.T) {
	h, s := newHost(t), newSetup(t)
	s.add("there", h, "ServerAliveInterval 1", "ServerAliveCountMax 1")
	s.options.Program = transport.ProgramBuiltin
	conn := s.mustDial("there")
	// Longer than a dead link is given.
	if out, err := output(t, conn, "sleep 4; echo ok"); out != "ok\n" || err != nil {
		t.Errorf("got %q, %v", out, err)
	}
	if conn.RTT() <= 0 {
		t.Error("no round trip seen")
	}
}

// An exchange of keys in the middle is no new log-in.
func TestRekey(t *testing.T) {
	h, s := newHost(t), newSetup(t)
	s.add("there", h, "RekeyLimit 1M", "ConnectTimeout 1")
	s.options.Program = transport.ProgramBuiltin
	conn := s.mustDial("there")
	if out, err := output(t, conn, "head -c 5000000 /dev/zero; sleep 2; echo"); len(out) != 5000001 || err != nil {
		t.Errorf("got %d bytes, %v", len(out), err)
	}
	works(t, conn)
}

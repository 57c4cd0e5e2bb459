package transport_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/copy-closure/copy-closure/transport"
)

func (s *setup) dialTrunk(alias string) (*transport.Trunk, error) {
	s.t.Helper()
	d, err := transport.ParseDestination(alias)
	if err != nil {
		s.t.Fatal(err)
	}
	trunk, err := transport.DialTrunk(s.t.Context(), d, s.options)
	if err == nil {
		s.t.Cleanup(func() { trunk.Close() })
	}
	return trunk, err
}

func (s *setup) mustDialTrunk(alias string) *transport.Trunk {
	s.t.Helper()
	trunk, err := s.dialTrunk(alias)
	if err != nil {
		s.t.Fatal(err)
	}
	return trunk
}

// whichConnection names the connection that a session goes over: by the client's port.
func whichConnection(t *testing.T, start func(context.Context, string) (*transport.Session, error)) string {
	t.Helper()
	s, err := start(t.Context(), "set -- $SSH_CONNECTION; echo $2")
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(s)
	if err != nil {
		t.Errorf("read: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	return strings.TrimSpace(string(out))
}

func TestTrunk(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		h, s := newHost(t), newSetup(t)
		s.add("there", h)
		s.options.Program = program
		trunk := s.mustDialTrunk("there")
		first := whichConnection(t, trunk.Start)
		if got := whichConnection(t, trunk.StartFurther); got != first {
			t.Errorf("over %s, want %s, as there is no other", got, first)
		}
		trunk.Widen(t.Context(), 3)
		var order []string
		for range 6 {
			order = append(order, whichConnection(t, trunk.StartFurther))
		}
		if order[0] == first || order[1] == first || order[0] == order[1] || order[2] != first || !slices.Equal(order[:3], order[3:]) {
			t.Errorf("sessions go over %q, want all three connections in turn, %s last", order, first)
		}
		if got := whichConnection(t, trunk.Start); got != first {
			t.Errorf("a session that shares no work goes over %s, want %s", got, first)
		}
		if got := h.connections(); got != 3 {
			t.Errorf("%d connections, want 3", got)
		}
		if err := trunk.Close(); err != nil {
			t.Error(err)
		}
		trunk.Widen(t.Context(), 5)
		if _, err := trunk.StartFurther(t.Context(), "true"); err == nil {
			t.Error("a session after Close")
		}
		if got := h.connections(); got != 3 {
			t.Errorf("%d connections after Close, want 3", got)
		}
	})
}

// A prompter that gives the right passphrase once.
type oncePrompter struct {
	transport.Prompter
	passphrase string

	mu    sync.Mutex
	asked int
}

func (p *oncePrompter) Password(context.Context, string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asked++; p.asked > 1 {
		return "", errors.New("asked again")
	}
	return p.passphrase, nil
}

func TestTrunkAsksOnce(t *testing.T) {
	h, s := newHost(t), newSetup(t)
	h.userKey = newKey(t, h.dir+"/locked", "secret")
	write(t, h.dir+"/authorized", h.userKey.line()+"\n")
	s.add("there", h)
	s.options.Program = transport.ProgramBuiltin
	ask := &oncePrompter{passphrase: "secret"}
	s.options.Prompter = ask
	log := new(lines)
	s.options.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	trunk := s.mustDialTrunk("there")
	trunk.Widen(t.Context(), 2)
	first := whichConnection(t, trunk.Start)
	for range 2 {
		if got := whichConnection(t, trunk.StartFurther); got != first {
			t.Errorf("over %s, want %s", got, first)
		}
	}
	if ask.asked != 1 {
		t.Errorf("asked %d times, want once", ask.asked)
	}
	if !strings.Contains(log.String(), "a further connection cannot be had") {
		t.Errorf("it is not said that there is no further connection:\n%s", log)
	}
}

// A securityKey is an agent whose one key must be touched for each signature.
type securityKey struct {
	agent.Agent
	private ed25519.PrivateKey
	touched atomic.Int32
}

const (
	securityKeyType = "sk-ssh-ed25519@openssh.com"
	application     = "ssh:"
)

func (k *securityKey) public() []byte {
	return ssh.Marshal(struct {
		Type        string
		Key         []byte
		Application string
	}{securityKeyType, k.private.Public().(ed25519.PublicKey), application})
}

func (k *securityKey) List() ([]*agent.Key, error) {
	return []*agent.Key{{Format: securityKeyType, Blob: k.public(), Comment: "touch me"}}, nil
}

func (k *securityKey) Sign(_ ssh.PublicKey, data []byte) (*ssh.Signature, error) {
	k.touched.Add(1)
	there := []byte{1, 0, 0, 0, 1} // touched, and a counter
	of, what := sha256.Sum256([]byte(application)), sha256.Sum256(data)
	return &ssh.Signature{
		Format: securityKeyType,
		Blob:   ed25519.Sign(k.private, slices.Concat(of[:], there, what[:])),
		Rest:   there,
	}, nil
}

func TestTrunkIsTouchedOnce(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		h, s := newHost(t), newSetup(t)
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		key := &securityKey{private: private}
		write(t, h.dir+"/authorized", securityKeyType+" "+base64.StdEncoding.EncodeToString(key.public())+"\n")
		h.userKey.file = "/nonexistent"
		s.add("there", h, "IdentityAgent "+serveThisAgent(t, key))
		s.options.Program = program
		trunk := s.mustDialTrunk("there")
		trunk.Widen(t.Context(), 2)
		first := whichConnection(t, trunk.Start)
		if got := whichConnection(t, trunk.StartFurther); got != first {
			t.Errorf("over %s, want %s", got, first)
		}
		if n := key.touched.Load(); n != 1 {
			t.Errorf("the key was touched %d times, want once", n)
		}
	})
}

// lines is a log that several goroutines write.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func TestTrunkLosesFirst(t *testing.T) {
	h, s := newHost(t), newSetup(t)
	s.add("there", h)
	s.options.Program = transport.ProgramBuiltin
	trunk := s.mustDialTrunk("there")
	first := whichConnection(t, trunk.Start)
	h.kill()
	if session, err := trunk.Start(t.Context(), "true"); err == nil && session.Close() == nil {
		t.Error("the only connection was cut, and a session is had")
	}
	trunk.Widen(t.Context(), 2)
	if second := whichConnection(t, trunk.Start); second == first {
		t.Errorf("over %s, which was cut", second)
	}
}

func TestTrunkIsCancelled(t *testing.T) {
	h, s := newHost(t), newSetup(t)
	s.add("there", h)
	s.options.Program = transport.ProgramBuiltin
	trunk := s.mustDialTrunk("there")
	ctx, cancel := context.WithCancel(t.Context())
	trunk.Widen(ctx, 2)
	session, err := trunk.StartFurther(t.Context(), "cat")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(session); err == nil {
		t.Error("the connection outlives its context")
	}
	session.Close()
	if out, err := output(t, trunk, "echo hello"); out != "hello\n" || err != nil {
		t.Error(fmt.Errorf("the first connection: %q, %w", out, err))
	}
}

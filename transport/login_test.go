package transport_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/sys/cpu"

	"github.com/copy-closure/copy-closure/transport"
)

// A person answers what is asked, and remembers it.
type person struct {
	password string
	confirm  bool

	mu    sync.Mutex
	asked []string
}

func (p *person) Password(_ context.Context, prompt string) (string, error) {
	p.note(prompt)
	return p.password, nil
}

func (p *person) Confirm(_ context.Context, question string) (bool, error) {
	p.note(question)
	return p.confirm, nil
}

func (p *person) note(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, text)
}

// works fails the test if the connection does not run a command.
func works(t *testing.T, conn transport.Conn) {
	t.Helper()
	if out, err := output(t, conn, "echo ok"); out != "ok\n" || err != nil {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestKeyWithPassphrase(t *testing.T) {
	first, second := newHost(t), newHost(t)
	locked := newKey(t, filepath.Join(first.dir, "locked"), "secret")
	for _, h := range []*host{first, second} {
		write(t, filepath.Join(h.dir, "authorized"), locked.line()+"\n")
		h.userKey = locked
	}
	s := newSetup(t)
	s.add("first", first)
	s.add("second", second, "ProxyJump first")
	someone := &person{password: "secret"}
	s.options.Prompter = someone
	s.options.Program = transport.ProgramBuiltin
	works(t, s.mustDial("second"))
	if len(someone.asked) != 1 || !strings.Contains(someone.asked[0], locked.file) {
		t.Errorf("asked %q, want once for %s", someone.asked, locked.file)
	}

	s.options.Prompter = &person{password: "wrong"}
	_, err := s.dial(t.Context(), "first")
	if _, ok := errors.AsType[*transport.AuthError](err); !ok || !strings.Contains(err.Error(), "wrong passphrase") {
		t.Errorf("wrong passphrase: %v", err)
	}
	s.options.Prompter = nil
	_, err = s.dial(t.Context(), "first")
	if _, ok := errors.AsType[*transport.AuthError](err); !ok || !strings.Contains(err.Error(), "needs a passphrase") {
		t.Errorf("nobody there: %v", err)
	}
}

// serveAgent runs an agent that holds keys, and returns its socket.
func serveAgent(t *testing.T, keys ...agent.AddedKey) string {
	t.Helper()
	keyring := agent.NewKeyring()
	for _, k := range keys {
		if err := keyring.Add(k); err != nil {
			t.Fatal(err)
		}
	}
	return serveThisAgent(t, keyring)
}

func serveThisAgent(t *testing.T, keyring agent.Agent) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
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
				agent.ServeAgent(keyring, conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return socket
}

func TestAgent(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		h, s := newHost(t), newSetup(t)
		socket := serveAgent(t, agent.AddedKey{PrivateKey: h.userKey.raw})
		h.userKey.file = "/nonexistent"
		s.add("there", h, "IdentityAgent "+socket)
		s.options.Program = program
		works(t, s.mustDial("there"))
	})
}

func TestWrongKey(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		h, s := newHost(t), newSetup(t)
		stranger := newKey(t, filepath.Join(s.dir, "stranger"), "")
		h.userKey = stranger
		s.add("there", h)
		s.options.Program = program
		_, err := s.dial(t.Context(), "there")
		refused, ok := errors.AsType[*transport.AuthError](err)
		if !ok {
			t.Fatalf("got %v, want an AuthError", err)
		}
		if !slices.Equal(refused.Offered, []string{"publickey"}) {
			t.Errorf("offered: %q", refused.Offered)
		}
		fingerprint := ssh.FingerprintSHA256(stranger.signer.PublicKey())
		if program == transport.ProgramBuiltin && !strings.Contains(err.Error(), fingerprint) {
			t.Errorf("%v: does not name the key %s", err, fingerprint)
		}
	})
}

// certify signs a certificate for subject.
func certify(t *testing.T, authority, subject key, kind uint32, principal string, until time.Time) string {
	t.Helper()
	cert := &ssh.Certificate{
		Key:             subject.signer.PublicKey(),
		CertType:        kind,
		KeyId:           "test",
		ValidPrincipals: []string{principal},
		ValidAfter:      uint64(time.Now().Add(-time.Hour).Unix()),
		ValidBefore:     uint64(until.Unix()),
	}
	if err := cert.SignCert(rand.Reader, authority.signer); err != nil {
		t.Fatal(err)
	}
	return string(ssh.MarshalAuthorizedKey(cert))
}

func TestUserCertificate(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		dir := t.TempDir()
		authority := newKey(t, filepath.Join(dir, "ca"), "")
		h := newHost(t, "TrustedUserCAKeys "+authority.file+".pub", "AuthorizedPrincipalsFile "+filepath.Join(dir, "principals"))
		write(t, filepath.Join(dir, "principals"), "somebody\n")
		h.userKey = newKey(t, filepath.Join(dir, "id"), "")
		cert := certify(t, authority, h.userKey, ssh.UserCert, "somebody", time.Now().Add(time.Hour))
		for name, lines := range map[string][]string{"id-cert.pub": nil, "elsewhere.pub": {"CertificateFile " + filepath.Join(dir, "elsewhere.pub")}} {
			write(t, filepath.Join(dir, name), cert)
			s := newSetup(t)
			s.add("there", h, lines...)
			s.options.Program = program
			works(t, s.mustDial("there"))
		}
	})
}

// passwordServer is a server that knows no keys: sshd asks the system for passwords.
func passwordServer(t *testing.T, config *ssh.ServerConfig) *host {
	t.Helper()
	dir := t.TempDir()
	h := &host{t: t, dir: dir, hostKey: newKey(t, filepath.Join(dir, "host"), ""), userKey: key{file: "/nonexistent"}}
	config.AddHostKey(h.hostKey.signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.address = l.Addr()
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				server, channels, requests, err := ssh.NewServerConn(conn, config)
				if err != nil {
					return
				}
				go ssh.DiscardRequests(requests)
				for channel := range channels {
					serving.Go(func() { refuseCommands(channel) })
				}
				server.Wait()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return h
}

func refuseCommands(offered ssh.NewChannel) {
	channel, requests, err := offered.Accept()
	if err != nil {
		return
	}
	defer channel.Close()
	for request := range requests {
		request.Reply(false, nil)
	}
}

func TestPassword(t *testing.T) {
	secret := func(given string) (*ssh.Permissions, error) {
		if given != "secret" {
			return nil, errors.New("wrong")
		}
		return nil, nil
	}
	servers := map[string]*ssh.ServerConfig{
		"password": {PasswordCallback: func(_ ssh.ConnMetadata, given []byte) (*ssh.Permissions, error) { return secret(string(given)) }},
		"keyboard-interactive": {KeyboardInteractiveCallback: func(_ ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
			answers, err := ask("", "\x1b[31mwelcome", []string{"Code: "}, []bool{true})
			if err != nil {
				return nil, err
			}
			return secret(answers[0])
		}},
	}
	for method, config := range servers {
		t.Run(method, func(t *testing.T) {
			h, s := passwordServer(t, config), newSetup(t)
			s.add("there", h)
			s.options.Program = transport.ProgramBuiltin
			someone := &person{password: "secret"}
			s.options.Prompter = someone
			conn := s.mustDial("there")
			if len(someone.asked) != 1 || !strings.Contains(someone.asked[0], "@there") {
				t.Errorf("asked %q", someone.asked)
			}
			// A server that is not known to run commands at once is waited for.
			if _, err := conn.Start(t.Context(), "true"); err == nil || !strings.Contains(err.Error(), "does not run commands") {
				t.Errorf("refused command: %v", err)
			}

			someone = &person{password: "wrong"}
			s.options.Prompter = someone
			_, err := s.dial(t.Context(), "there")
			refused, ok := errors.AsType[*transport.AuthError](err)
			if !ok || !slices.Equal(refused.Tried, []string{method}) || len(someone.asked) != 3 {
				t.Errorf("wrong password: %v, asked %d times", err, len(someone.asked))
			}

			s.options.Prompter = nil
			_, err = s.dial(t.Context(), "there")
			if err == nil || !strings.Contains(err.Error(), "nobody is there") {
				t.Errorf("nobody there: %v", err)
			}
		})
	}
}

// A log-in offers the keys that the user named before the rest of the agent's, so that
// a host that allows few attempts still lets him in.
func TestManyAgentKeys(t *testing.T) {
	h, s := newHost(t, "MaxAuthTries 2"), newSetup(t)
	var others []agent.AddedKey
	for i := range 5 {
		k := newKey(t, filepath.Join(s.dir, fmt.Sprint("other", i)), "")
		others = append(others, agent.AddedKey{PrivateKey: k.raw})
	}
	s.add("there", h, "IdentityAgent "+serveAgent(t, others...))
	s.options.Program = transport.ProgramBuiltin
	works(t, s.mustDial("there"))
}

func TestIdentitiesOnly(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		h, s := newHost(t), newSetup(t)
		socket := serveAgent(t, agent.AddedKey{PrivateKey: h.userKey.raw})
		h.userKey.file = "/nonexistent"
		s.add("there", h, "IdentityAgent "+socket, "IdentitiesOnly yes")
		s.options.Program = program
		_, err := s.dial(t.Context(), "there")
		if _, ok := errors.AsType[*transport.AuthError](err); !ok {
			t.Errorf("got %v, want an AuthError", err)
		}
	})
}

func TestCiphers(t *testing.T) {
	tests := []struct{ config, want string }{
		{"# default", ssh.CipherAES128GCM},
		{"Ciphers aes256-ctr,aes128-gcm@openssh.com", ssh.CipherAES256CTR},
	}
	for _, test := range tests {
		h, s := newHost(t), newSetup(t)
		s.add("there", h, test.config)
		s.options.Program = transport.ProgramBuiltin
		var log strings.Builder
		s.options.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		s.mustDial("there").Close()
		want := test.want
		if strings.HasPrefix(test.config, "#") && !cpu.X86.HasAES && !cpu.ARM64.HasAES && !cpu.S390X.HasAES {
			want = ssh.CipherChaCha20Poly1305
		}
		if !strings.Contains(log.String(), "cipher="+want) {
			t.Errorf("%s: log %s, want the cipher %s", test.config, log.String(), want)
		}
	}
}

// A host that is slow to let the user in is not far away.
func TestSlowLogIn(t *testing.T) {
	const slow = time.Second
	h, s := passwordServer(t, &ssh.ServerConfig{
		PasswordCallback: func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) { return nil, nil },
		AuthLogCallback: func(_ ssh.ConnMetadata, method string, _ error) {
			if method == "none" {
				time.Sleep(slow)
			}
		},
	}), newSetup(t)
	s.add("there", h)
	s.options.Program = transport.ProgramBuiltin
	s.options.Prompter = &person{password: "secret"}
	conn := s.mustDial("there")
	for end := time.Now().Add(time.Minute); conn.RTT() >= slow/2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the round trip is %v", conn.RTT())
		}
	}
}

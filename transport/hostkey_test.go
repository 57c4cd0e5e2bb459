package transport_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/copy-closure/copy-closure/transport"
)

func fingerprint(k key) string { return ssh.FingerprintSHA256(k.signer.PublicKey()) }

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestHostKeyRefused(t *testing.T) {
	other := newKey(t, filepath.Join(t.TempDir(), "other"), "")
	tests := []struct {
		name     string
		known    func(h *host, name string) string
		config   []string
		want     transport.HostKeyProblem
		contains string
	}{
		{"unknown", func(*host, string) string { return "" }, nil, transport.HostKeyUnknown, "is not known"},
		{"strict", func(*host, string) string { return "" }, []string{"StrictHostKeyChecking yes"}, transport.HostKeyUnknown, "is not known"},
		{"changed", func(_ *host, name string) string { return "# a comment\n" + name + " " + other.line() }, nil, transport.HostKeyChanged, "ssh-keygen -R '["},
		{"changed, accept-new", func(_ *host, name string) string { return name + " " + other.line() }, []string{"StrictHostKeyChecking accept-new"}, transport.HostKeyChanged, "ssh-keygen -R"},
		{"revoked", func(h *host, name string) string { return h.knownAs(name) + "\n@revoked * " + h.hostKey.line() }, nil, transport.HostKeyRevoked, "revoked"},
		{"another one on another port", func(*host, string) string { return "127.0.0.1 " + other.line() }, nil, transport.HostKeyUnknown, "is not known"},
		{"negated", func(h *host, name string) string { return h.knownAs("[*]:*,!" + name) }, nil, transport.HostKeyUnknown, "is not known"},
	}
	eachProgram(t, func(t *testing.T, program string) {
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				h, s := newHost(t), newSetup(t)
				name := fmt.Sprintf("[127.0.0.1]:%d", h.port())
				s.know(test.known(h, name))
				s.addUnknown("there", h, test.config...)
				s.options.Program = program
				before := read(t, s.knownHosts())
				_, err := s.dial(t.Context(), "there")
				bad, ok := errors.AsType[*transport.HostKeyError](err)
				if !ok {
					t.Fatalf("got %v, want a HostKeyError", err)
				}
				if bad.Problem != test.want || bad.Host != name || !strings.Contains(err.Error(), test.contains) {
					t.Errorf("got %+v: %v", bad, err)
				}
				if program == transport.ProgramBuiltin && !strings.Contains(err.Error(), fingerprint(h.hostKey)) {
					t.Errorf("%v: does not show the fingerprint", err)
				}
				if test.name == "changed" && (bad.File != s.knownHosts() || bad.Line != 2) {
					t.Errorf("conflict at %s:%d, want %s:2", bad.File, bad.Line, s.knownHosts())
				}
				if read(t, s.knownHosts()) != before {
					t.Error("known_hosts was changed")
				}
			})
		}
	})
}

func TestHostKeyAccepted(t *testing.T) {
	tests := []struct {
		name   string
		known  func(h *host, name string) string
		config []string
	}{
		{"known", func(h *host, name string) string { return h.knownAs(name) }, nil},
		{"wildcard", func(h *host, _ string) string { return h.knownAs("[127.0.*]:*") }, nil},
		{"without the port", func(h *host, _ string) string { return h.knownAs("127.0.0.1") }, nil},
		{"beside nonsense", func(h *host, name string) string { return "name 1024 35 77\n@what\n" + h.knownAs(name) }, nil},
		{"alias", func(h *host, _ string) string { return h.knownAs("another") }, []string{"HostKeyAlias another"}},
		{"not checked", func(*host, string) string { return "" }, []string{"StrictHostKeyChecking no", "UserKnownHostsFile /dev/null"}},
	}
	eachProgram(t, func(t *testing.T, program string) {
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				h, s := newHost(t), newSetup(t)
				s.know(test.known(h, fmt.Sprintf("[127.0.0.1]:%d", h.port())))
				s.addUnknown("there", h, test.config...)
				s.options.Program = program
				works(t, s.mustDial("there"))
			})
		}
	})
}

func TestHostKeyHashed(t *testing.T) {
	keygen := needProgram(t, "ssh-keygen")
	h, s := newHost(t), newSetup(t)
	s.add("there", h, "StrictHostKeyChecking yes")
	if err := exec.Command(keygen, "-H", "-f", s.knownHosts()).Run(); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(read(t, s.knownHosts()), "127.0.0.1") {
		t.Fatal("not hashed")
	}
	s.options.Program = transport.ProgramBuiltin
	works(t, s.mustDial("there"))
}

// A host may have several keys, of which only one is known.
func TestHostKeyOfAnotherType(t *testing.T) {
	keygen := needProgram(t, "ssh-keygen")
	dir := t.TempDir()
	for _, kind := range []string{"ecdsa", "rsa"} {
		file := filepath.Join(dir, kind)
		if err := exec.Command(keygen, "-q", "-N", "", "-t", kind, "-f", file).Run(); err != nil {
			t.Fatal(err)
		}
		h, s := newHost(t, "HostKey "+file), newSetup(t)
		for _, known := range []string{read(t, file+".pub"), h.hostKey.line()} {
			write(t, s.knownHosts(), fmt.Sprintf("[127.0.0.1]:%d %s\n", h.port(), known))
			s.addUnknown("there", h)
			s.options.Program = transport.ProgramBuiltin
			works(t, s.mustDial("there"))
		}
	}
}

// Host keys that are let in without proof, and others that are verified, with what is
// known of the host (the word "key" stands for its key).
var unverified = []struct {
	name, known string
	config      []string
	verified    bool
	session     bool // try it with a session at a real sshd, too
}{
	{"changed", "other", []string{"StrictHostKeyChecking no"}, false, true},
	{"unknown", "", []string{"StrictHostKeyChecking no"}, false, true},
	{"quietly unknown", "", []string{"StrictHostKeyChecking off", "LogLevel QUIET"}, false, false},
	{"remembered nowhere", "", []string{"StrictHostKeyChecking no", "UserKnownHostsFile /dev/null"}, false, false},
	{"first again and again", "", []string{"StrictHostKeyChecking accept-new", "UserKnownHostsFile /dev/null"}, false, false},
	{"known all the same", "key", []string{"StrictHostKeyChecking no"}, true, true},
	{"first and remembered", "", []string{"StrictHostKeyChecking accept-new"}, true, false},
	{"known", "key", nil, true, false},
}

// A host whose key was not verified can be worked with, but no secret is sent there.
func TestNoSecretForUnverifiedHosts(t *testing.T) {
	other := newKey(t, filepath.Join(t.TempDir(), "other"), "")
	eachProgram(t, func(t *testing.T, program string) {
		for _, test := range unverified {
			if !test.session {
				continue
			}
			t.Run(test.name, func(t *testing.T) {
				h, s := newHost(t), newSetup(t)
				s.knowTest(test.known, h, other)
				s.addUnknown("there", h, test.config...)
				s.options.Program = program
				conn := s.mustDial("there")
				works(t, conn)
				if conn.Login().Verified != test.verified {
					t.Errorf("verified is %v", conn.Login().Verified)
				}
				session, err := conn.Start(t.Context(), "cat")
				if err != nil {
					t.Fatal(err)
				}
				err = session.WriteSecret(transport.NewSecret("sesame"))
				if _, refused := errors.AsType[*transport.UnverifiedHostError](err); refused == test.verified || err != nil && !refused {
					t.Errorf("got %v", err)
				}
				session.CloseWrite()
				got, _ := io.ReadAll(session)
				if sent := string(got) == "sesame\n"; sent != test.verified || !sent && len(got) > 0 {
					t.Errorf("the host got %q", got)
				}
				session.Close()
			})
		}
	})
}

// knowTest makes a key known for the host: its own, another one, or none.
func (s *setup) knowTest(which string, h *host, other key) {
	name := fmt.Sprintf("[127.0.0.1]:%d", h.port())
	switch which {
	case "key":
		s.know(h.knownAs(name))
	case "other":
		s.know(name + " " + other.line())
	}
}

// The same holds for the password of the log-in, and for answers to questions of the
// host. ssh asks for it by itself.
func TestNoPasswordForUnverifiedHosts(t *testing.T) {
	other := newKey(t, filepath.Join(t.TempDir(), "other"), "")
	askpass := filepath.Join(t.TempDir(), "askpass")
	write(t, askpass, "#!/bin/sh\necho sesame\n")
	if err := os.Chmod(askpass, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSH_ASKPASS", askpass)
	t.Setenv("SSH_ASKPASS_REQUIRE", "force")
	t.Setenv("DISPLAY", ":0")
	eachProgram(t, func(t *testing.T, program string) {
		for _, test := range unverified {
			t.Run(test.name, func(t *testing.T) {
				var mu sync.Mutex
				var got []string
				note := func(words ...string) {
					mu.Lock()
					defer mu.Unlock()
					got = append(got, words...)
				}
				h := passwordServer(t, &ssh.ServerConfig{
					PasswordCallback: func(_ ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
						note(string(password))
						return nil, errors.New("no")
					},
					KeyboardInteractiveCallback: func(_ ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
						answers, _ := ask("", "", []string{"Password: "}, []bool{false})
						note(answers...)
						return nil, errors.New("no")
					},
				})
				s := newSetup(t)
				s.knowTest(test.known, h, other)
				s.addUnknown("there", h, test.config...)
				s.options.Program = program
				s.options.Prompter = &person{password: "sesame"}
				_, err := s.dial(t.Context(), "there")
				if err == nil {
					t.Fatal("let in")
				}
				mu.Lock()
				defer mu.Unlock()
				if sent := len(got) > 0; sent != test.verified {
					t.Errorf("the host got %q", got)
				}
				if told := strings.Contains(err.Error(), "not verified: no password is sent"); !test.verified && !told && !slices.Contains(test.config, "LogLevel QUIET") {
					t.Errorf("the error does not say why: %v", err)
				}
			})
		}
	})
}

func TestHostKeyRemembered(t *testing.T) {
	for name, config := range map[string]string{"plain": "HashKnownHosts no", "hashed": "HashKnownHosts yes"} {
		t.Run(name, func(t *testing.T) {
			h, s := newHost(t), newSetup(t)
			write(t, s.knownHosts(), "# no line end")
			s.addUnknown("there", h, "StrictHostKeyChecking accept-new", config)
			s.options.Program = transport.ProgramBuiltin
			s.mustDial("there")
			text := read(t, s.knownHosts())
			if !strings.HasPrefix(text, "# no line end\n") || !strings.HasSuffix(text, h.hostKey.line()+"\n") {
				t.Errorf("known_hosts: %q", text)
			}
			if hidden := !strings.Contains(text, "127.0.0.1"); hidden != (name == "hashed") {
				t.Errorf("known_hosts: %q", text)
			}
			// From here on it is known, to us and to OpenSSH.
			s.options.SSHOptions = append(s.options.SSHOptions, "-oStrictHostKeyChecking=yes")
			works(t, s.mustDial("there"))
			needProgram(t, "ssh")
			s.options.Program = transport.ProgramOpenSSH
			works(t, s.mustDial("there"))
			if again := read(t, s.knownHosts()); again != text {
				t.Errorf("changed once more: %q", again)
			}
		})
	}
}

func TestHostKeyPrompt(t *testing.T) {
	h, s := newHost(t), newSetup(t)
	s.addUnknown("there", h)
	s.options.Program = transport.ProgramBuiltin
	s.options.Prompter = &person{confirm: false}
	_, err := s.dial(t.Context(), "there")
	if _, ok := errors.AsType[*transport.HostKeyError](err); !ok {
		t.Fatalf("no: got %v, want a HostKeyError", err)
	}
	someone := &person{confirm: true}
	s.options.Prompter = someone
	works(t, s.mustDial("there"))
	if len(someone.asked) != 1 || !strings.Contains(someone.asked[0], fingerprint(h.hostKey)) {
		t.Errorf("asked %q", someone.asked)
	}
	s.options.Prompter = nil
	works(t, s.mustDial("there"))
}

func TestHostCertificate(t *testing.T) {
	good, bad := time.Now().Add(time.Hour), time.Now().Add(-time.Minute)
	tests := []struct {
		name      string
		principal string
		until     time.Time
		known     func(h *host, authority key) string
		want      string // of the error; empty: it works
	}{
		{"authority", "127.0.0.1", good, func(_ *host, ca key) string { return "@cert-authority [127.*]:* " + ca.line() }, ""},
		{"no authority but the key", "127.0.0.1", good, func(h *host, _ key) string { return h.knownAs(fmt.Sprintf("[127.0.0.1]:%d", h.port())) }, ""},
		{"authority of others", "127.0.0.1", good, func(_ *host, ca key) string { return "@cert-authority *.example.org " + ca.line() }, "is not known"},
		{"another name", "web1", good, func(_ *host, ca key) string { return "@cert-authority * " + ca.line() }, "principal"},
		{"expired", "127.0.0.1", bad, func(_ *host, ca key) string { return "@cert-authority * " + ca.line() }, "expired"},
		{"revoked authority", "127.0.0.1", good, func(_ *host, ca key) string {
			return "@cert-authority * " + ca.line() + "\n@revoked * " + ca.line()
		}, "revoked"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			authority := newKey(t, filepath.Join(dir, "ca"), "")
			cert := filepath.Join(dir, "host-cert.pub")
			h, s := newHost(t, "HostCertificate "+cert), newSetup(t)
			write(t, cert, certify(t, authority, h.hostKey, ssh.HostCert, test.principal, test.until))
			s.know(test.known(h, authority))
			s.addUnknown("there", h)
			s.options.Program = transport.ProgramBuiltin
			conn, err := s.dial(t.Context(), "there")
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				works(t, conn)
				return
			}
			if _, ok := errors.AsType[*transport.HostKeyError](err); !ok || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want a HostKeyError with %q", err, test.want)
			}
		})
	}
}

func TestStoreParameters(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		h, s := newHost(t), newSetup(t)
		file := h.userKey.file
		h.userKey.file = "/nonexistent"
		s.addUnknown("there", h)
		s.options.Program = program
		s.options.KeyFile = file
		s.options.HostKey = base64Line(h.hostKey)
		works(t, s.mustDial("there"))

		s.options.HostKey = base64Line(h.userKey)
		s.options.SSHOptions = append(s.options.SSHOptions, "-oStrictHostKeyChecking=no")
		_, err := s.dial(t.Context(), "there")
		if _, ok := errors.AsType[*transport.HostKeyError](err); !ok {
			t.Errorf("another host key: %v", err)
		}
	})
}

func base64Line(k key) string { return base64.StdEncoding.EncodeToString([]byte(k.line())) }

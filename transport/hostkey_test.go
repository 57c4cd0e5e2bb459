package transport_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

// StrictHostKeyChecking no connects whatever the key, but no password goes there.
func TestHostKeyUnproved(t *testing.T) {
	other := newKey(t, filepath.Join(t.TempDir(), "other"), "")
	h, s := newHost(t), newSetup(t)
	s.know(fmt.Sprintf("[127.0.0.1]:%d %s", h.port(), other.line()))
	s.addUnknown("there", h, "StrictHostKeyChecking no")
	s.options.Program = transport.ProgramBuiltin
	works(t, s.mustDial("there"))

	h = passwordServer(t, &ssh.ServerConfig{PasswordCallback: func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) {
		t.Error("a password was sent")
		return nil, nil
	}})
	s = newSetup(t)
	s.know(fmt.Sprintf("[127.0.0.1]:%d %s", h.port(), other.line()))
	s.addUnknown("there", h, "StrictHostKeyChecking no")
	s.options.Program = transport.ProgramBuiltin
	s.options.Prompter = &person{password: "secret"}
	_, err := s.dial(t.Context(), "there")
	if _, ok := errors.AsType[*transport.AuthError](err); !ok || !strings.Contains(err.Error(), "no password is sent") {
		t.Errorf("got %v", err)
	}
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

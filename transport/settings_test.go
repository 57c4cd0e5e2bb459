package transport_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/transport"
)

func TestParseSSHOptions(t *testing.T) {
	tests := []struct {
		in   string
		want []string
	}{
		{"", nil},
		{"-p 2222 -i ~/key", []string{"-p", "2222", "-i", "~/key"}},
		{`-o "ProxyCommand=nc %h %p" -lnix`, []string{"-o", "ProxyCommand=nc %h %p", "-lnix"}},
		{"-Cp22 -J 'a,b'", []string{"-Cp22", "-J", "a,b"}},
	}
	for _, test := range tests {
		got, err := transport.ParseSSHOptions(test.in)
		if err != nil {
			t.Errorf("%s: %v", test.in, err)
			continue
		}
		if diff := cmp.Diff(append([]string(nil), got...), test.want); diff != "" {
			t.Errorf("%s: got - want +\n%s", test.in, diff)
		}
	}
	refused := map[string]string{
		"-p":        "-p needs a value",
		"host":      `"host"`,
		"--":        `"--"`,
		"-":         `"-"`,
		"-N":        "-N",
		"-4t":       "-t",
		"-W a:1":    "-W",
		"-o 'a":     "'a",
		"-L1:a:2":   "-L",
		"-\xc3\xa4": "-",
	}
	for in, want := range refused {
		if _, err := transport.ParseSSHOptions(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %s", in, err, want)
		}
	}
}

func TestSSHOptions(t *testing.T) {
	h := newHost(t)
	eachProgram(t, func(t *testing.T, program string) {
		s := newSetup(t)
		s.know(h.knownAs("127.0.0.1"))
		s.options.Program = program
		me := strings.TrimSpace(run(t, "id", "-un"))
		var err error
		s.options.SSHOptions, err = transport.ParseSSHOptions("-F none -p " + strings.TrimPrefix(h.address.String(), "127.0.0.1:") +
			" -i " + h.userKey.file + " -l " + me + " -o 'UserKnownHostsFile " + s.knownHosts() + "' -oIdentityAgent=none")
		if err != nil {
			t.Fatal(err)
		}
		works(t, s.mustDial("127.0.0.1"))
	})
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// What the built-in client cannot do goes to ssh by itself, or is an error that names
// it where only the built-in client is allowed.
func TestUnsupported(t *testing.T) {
	needProgram(t, "ssh")
	ticket := filepath.Join(t.TempDir(), "ticket")
	write(t, ticket, "")
	tests := []struct {
		name   string
		config []string
		words  []string
		env    string // of KRB5CCNAME
		want   string // in the reason; empty: the built-in client can
	}{
		{name: "compression", config: []string{"Compression yes"}, want: "Compression is yes"},
		{name: "-C", words: []string{"-C"}, want: "Compression is yes"},
		{name: "agent forwarding", words: []string{"-A"}, want: "-A"},
		{name: "pkcs11", config: []string{"PKCS11Provider /x"}, want: "PKCS11Provider is /x"},
		{name: "ciphers", config: []string{"Ciphers aes256-cbc"}, want: "Ciphers is aes256-cbc"},
		{name: "revoked keys", config: []string{"RevokedHostKeys /x"}, want: "RevokedHostKeys is /x"},
		{name: "ticket", config: []string{"GSSAPIAuthentication yes"}, env: "FILE:" + ticket, want: "Kerberos"},
		{name: "ticket elsewhere", config: []string{"GSSAPIAuthentication yes"}, env: "KCM:", want: "Kerberos"},
		{name: "no ticket", config: []string{"GSSAPIAuthentication yes"}, env: "FILE:/nonexistent"},
		{name: "no master", config: []string{"ControlMaster auto", "ControlPath /nonexistent/%C"}},
		{name: "other ciphers", config: []string{"Ciphers aes256-ctr,aes256-cbc"}},
		{name: "defaults of Debian", config: []string{"SendEnv LANG LC_*", "HashKnownHosts yes"}},
		{name: "hop", config: []string{"ProxyJump hop"}, want: "jump host hop: VerifyHostKeyDNS is true"},
		{name: "token", config: []string{"CertificateFile %Z"}, want: "unknown token"},
	}
	if _, err := exec.LookPath("klist"); err == nil {
		t.Log("klist is here and decides about tickets")
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if _, err := exec.LookPath("klist"); err == nil && test.env != "" {
				t.Skip("klist looks for a real ticket")
			}
			t.Setenv("KRB5CCNAME", test.env)
			h, s := newHost(t), newSetup(t)
			s.add("there", h, test.config...)
			s.add("hop", h, "VerifyHostKeyDNS yes")
			s.options.SSHOptions = append(s.options.SSHOptions, test.words...)
			s.options.Program = transport.ProgramBuiltin
			_, err := s.dial(t.Context(), "there")
			if test.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			bad, ok := errors.AsType[*transport.UnsupportedError](err)
			if !ok || !strings.Contains(bad.Setting, test.want) {
				t.Errorf("got %v, want an UnsupportedError with %q", err, test.want)
			}
		})
	}
}

func TestSwitchToOpenSSH(t *testing.T) {
	needProgram(t, "ssh")
	h, s := newHost(t), newSetup(t)
	s.add("there", h)
	if conn := s.mustDial("there"); conn.Describe() != "builtin" {
		t.Errorf("plain: %s", conn.Describe())
	}
	s.options.Compress = true
	conn := s.mustDial("there")
	if conn.Describe() != "openssh, because Compression is yes" {
		t.Errorf("compressed: %s", conn.Describe())
	}
	works(t, conn)
}

func TestLiveMaster(t *testing.T) {
	ssh := needProgram(t, "ssh")
	h, s := newHost(t), newSetup(t)
	dir, err := os.MkdirTemp("/tmp", "cm") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s.add("there", h, "ControlPath "+dir+"/%p")
	config := s.options.SSHOptions[1]
	master := exec.Command(ssh, "-F", config, "-M", "-N", "-oPermitLocalCommand=yes", "-oLocalCommand=echo started", "there")
	out, err := master.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := master.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		master.Process.Kill()
		master.Wait()
	})
	if _, err := out.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	conn := s.mustDial("there")
	if !strings.Contains(conn.Describe(), "a master connection is running") {
		t.Errorf("got %s", conn.Describe())
	}
	works(t, conn)
	if h.connections() != 1 {
		t.Errorf("%d connections, want the master's only", h.connections())
	}
}

// withoutSSH hides the ssh program.
func withoutSSH(t *testing.T) {
	t.Helper()
	t.Setenv("PATH", t.TempDir())
}

func TestWithoutOpenSSH(t *testing.T) {
	h, s := newHost(t), newSetup(t)
	withoutSSH(t)
	included := filepath.Join(s.dir, "more")
	write(t, included, "Host there\n  SetEnv LC_TEST_A='x y' LC_TEST_B=z\n")
	s.blocks = append(s.blocks, "# first\nInclude "+included)
	s.add("hop", h)
	s.add("there", h, "ProxyJump hop", "StrictHostKeyChecking = yes")
	conn := s.mustDial("there")
	if out, err := output(t, conn, `echo "$LC_TEST_A,$LC_TEST_B"`); out != "x y,z\n" || err != nil {
		t.Errorf("got %q, %v", out, err)
	}
	if h.connections() != 2 {
		t.Errorf("%d connections, want 2", h.connections())
	}
	s.options.Program = transport.ProgramOpenSSH
	if _, err := s.dial(t.Context(), "there"); err == nil || !strings.Contains(err.Error(), "not installed") {
		t.Errorf("openssh: %v", err)
	}
}

func TestWithoutOpenSSHRefuses(t *testing.T) {
	h := newHost(t)
	tests := map[string]string{
		"Match exec true":                         "line 1: Match",
		"match=host there":                        "line 1: match=host",
		"Host *\n  CanonicalizeHostname yes":      "line 2: CanonicalizeHostname",
		"Host there\n  Compression yes":           "Compression is yes",
		"Host there\n  Ciphers +aes128-cbc":       "Ciphers is +aes128-cbc",
		"Host there\n  KnownHostsCommand /x":      "KnownHostsCommand is /x",
		"Include INCLUDED":                        "Match",
		"Host there\n  ProxyUseFdpass yes\n":      "ProxyUseFdpass is yes",
		"Host there\n  BindInterface eth0\n# end": "BindInterface is eth0",
	}
	for text, want := range tests {
		t.Run(want, func(t *testing.T) {
			withoutSSH(t)
			s := newSetup(t)
			included := filepath.Join(s.dir, "included")
			write(t, included, "Host a\nMatch all\n")
			s.blocks = []string{strings.ReplaceAll(text, "INCLUDED", included)}
			s.add("there", h)
			_, err := s.dial(t.Context(), "there")
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "not installed") {
				t.Errorf("got %v, want an error with %q", err, want)
			}
		})
	}
}

func TestBadConfiguration(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		h, s := newHost(t), newSetup(t)
		s.add("there", h, "NoSuchSetting x")
		s.options.Program = program
		if _, err := s.dial(t.Context(), "there"); err == nil || !strings.Contains(strings.ToLower(err.Error()), "nosuchsetting") {
			t.Errorf("got %v", err)
		}
	})
	s := newSetup(t)
	s.options.Program = "putty"
	if _, err := s.dial(t.Context(), "there"); err == nil || !strings.Contains(err.Error(), `"putty"`) {
		t.Errorf("got %v", err)
	}
}

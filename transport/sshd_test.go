package transport_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/transport"
)

// needProgram returns the path of a program that a test cannot do without.
func needProgram(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path = filepath.Join("/usr/sbin", name)
		if _, err := os.Stat(path); err != nil {
			harness.Unavailable(t, fmt.Errorf("%s is not installed", name))
		}
	}
	return path
}

// A key is a key pair of a test.
type key struct {
	file   string // of the private half; the public half is in file.pub
	raw    ed25519.PrivateKey
	signer ssh.Signer
}

// line is the public half as it stands in authorized_keys.
func (k key) line() string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k.signer.PublicKey())))
}

func newKey(t testing.TB, file, passphrase string) key {
	t.Helper()
	_, raw, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	var block *pem.Block
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(raw, "test")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(raw, "test", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	k := key{file: file, raw: raw, signer: signer}
	write(t, file, string(pem.EncodeToMemory(block)))
	write(t, file+".pub", k.line()+"\n")
	return k
}

func write(t testing.TB, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A host is a real sshd: one `sshd -i` for each connection to a listener of ours, so
// that there is no port to be guessed and no daemon to wait for.
type host struct {
	t       testing.TB
	dir     string
	address net.Addr
	hostKey key
	userKey key

	mu       sync.Mutex
	children []*exec.Cmd
	accepted int
}

func newHost(t testing.TB, extra ...string) *host {
	t.Helper()
	sshd := needProgram(t, "sshd")
	if os.Getuid() == 0 {
		os.MkdirAll("/run/sshd", 0o755) // where sshd wants it as root
	}
	h := &host{t: t, dir: t.TempDir()}
	h.hostKey = newKey(t, filepath.Join(h.dir, "host"), "")
	h.userKey = newKey(t, filepath.Join(h.dir, "id"), "")
	write(t, filepath.Join(h.dir, "authorized"), h.userKey.line()+"\n")
	config := append([]string{
		"HostKey " + h.hostKey.file,
		"AuthorizedKeysFile " + filepath.Join(h.dir, "authorized"),
		"StrictModes no", "UsePAM no", "PidFile none", "AcceptEnv LC_TEST*",
		"PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitRootLogin yes",
	}, extra...)
	file := filepath.Join(h.dir, "sshd_config")
	write(t, file, strings.Join(config, "\n")+"\n")
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
			serving.Go(func() { h.serve(sshd, file, conn.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		h.kill()
		serving.Wait()
	})
	return h
}

func (h *host) serve(sshd, config string, conn *net.TCPConn) {
	socket, err := conn.File()
	conn.Close()
	if err != nil {
		return
	}
	cmd := exec.Command(sshd, "-i", "-e", "-f", config)
	cmd.Stdin, cmd.Stdout = socket, socket
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // sshd has children that hold the connection
	log, err := os.OpenFile(filepath.Join(h.dir, "sshd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		cmd.Stderr = log
		defer log.Close()
	}
	h.mu.Lock()
	h.accepted++
	err = cmd.Start()
	if err == nil {
		h.children = append(h.children, cmd)
	}
	h.mu.Unlock()
	socket.Close()
	if err != nil {
		return
	}
	cmd.Wait()
	h.mu.Lock()
	h.children = slices.DeleteFunc(h.children, func(c *exec.Cmd) bool { return c == cmd })
	h.mu.Unlock()
}

// kill ends all sshd processes that are left, without a word to the client.
func (h *host) kill() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, cmd := range h.children {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	h.children = nil
}

func (h *host) connections() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.accepted
}

func (h *host) port() int { return h.address.(*net.TCPAddr).Port }

// knownAs is the line of known_hosts for the host.
func (h *host) knownAs(name string) string { return name + " " + h.hostKey.line() }

// A setup is a user's configuration in a directory of its own.
type setup struct {
	t       testing.TB
	dir     string
	blocks  []string
	options transport.Options
}

func newSetup(t testing.TB) *setup {
	t.Helper()
	s := &setup{t: t, dir: t.TempDir()}
	write(t, s.knownHosts(), "")
	s.options.SSHOptions = []string{"-F", filepath.Join(s.dir, "config")}
	s.options.Logger = testLogger(t)
	return s
}

func (s *setup) knownHosts() string { return filepath.Join(s.dir, "known_hosts") }

// add writes a Host block for h, whose key is known.
func (s *setup) add(alias string, h *host, lines ...string) {
	s.t.Helper()
	s.know(h.knownAs(fmt.Sprintf("[127.0.0.1]:%d", h.port())))
	s.addUnknown(alias, h, lines...)
}

func (s *setup) addUnknown(alias string, h *host, lines ...string) {
	s.t.Helper()
	me, err := user.Current()
	if err != nil {
		s.t.Fatal(err)
	}
	block := []string{"Host " + alias}
	for _, line := range append(lines,
		"HostName 127.0.0.1", fmt.Sprintf("Port %d", h.port()), "User "+me.Username,
		"IdentityFile "+h.userKey.file, "IdentityAgent none",
		"UserKnownHostsFile "+s.knownHosts(), "GlobalKnownHostsFile /dev/null") {
		block = append(block, "  "+line)
	}
	s.blocks = append(s.blocks, strings.Join(block, "\n"))
	write(s.t, filepath.Join(s.dir, "config"), strings.Join(s.blocks, "\n")+"\n")
}

// know adds a line to known_hosts.
func (s *setup) know(line string) {
	s.t.Helper()
	data, err := os.ReadFile(s.knownHosts())
	if err != nil {
		s.t.Fatal(err)
	}
	write(s.t, s.knownHosts(), string(data)+line+"\n")
}

func (s *setup) dial(ctx context.Context, alias string) (transport.Conn, error) {
	s.t.Helper()
	d, err := transport.ParseDestination(alias)
	if err != nil {
		s.t.Fatal(err)
	}
	conn, err := transport.Dial(ctx, d, s.options)
	if err == nil {
		s.t.Cleanup(func() { conn.Close() })
	}
	return conn, err
}

func (s *setup) mustDial(alias string) transport.Conn {
	s.t.Helper()
	conn, err := s.dial(s.t.Context(), alias)
	if err != nil {
		s.t.Fatalf("dial: %v", err)
	}
	return conn
}

// eachProgram runs a test with the built-in client and with the ssh program.
func eachProgram(t *testing.T, f func(t *testing.T, program string)) {
	for _, program := range []string{transport.ProgramBuiltin, transport.ProgramOpenSSH} {
		t.Run(program, func(t *testing.T) {
			if program == transport.ProgramOpenSSH {
				needProgram(t, "ssh")
			}
			f(t, program)
		})
	}
}

package harness

import (
	"bufio"
	"cmp"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// FarHost is the name under which the written client configurations know the
// server.
const FarHost = "far"

// SshdConfig says what kind of server to start. Only Dir is required.
type SshdConfig struct {
	// Dir is an existing directory for keys and configuration.
	Dir string
	// Env are the variables (K=V) that every session gets, in front of what
	// the server sets itself: PATH, NIX_REMOTE, HOME.
	Env []string
	// MaxSessions limits the sessions on one connection; zero is sshd's
	// default, ten.
	MaxSessions int
	// ForceCommand runs instead of every command, for everybody.
	ForceCommand string
	// KeyCommand runs instead of every command for the user's key, as
	// command="…" in authorized_keys.
	KeyCommand string
	// Banner is shown before the login, on the client's standard error.
	Banner string
	// Noise is printed to the standard output of every command ahead of the
	// command's own, as a careless .bashrc does. Not together with
	// ForceCommand.
	Noise string
	// NoSFTP leaves the SFTP subsystem out.
	NoSFTP bool
	// Address is where the server listens; empty: 127.0.0.1.
	Address string
	// Options are further lines of sshd_config, in front of all others.
	Options []string
	// Prefix is a command that starts sshd, for example one of [Namespace].
	Prefix []string
}

// An Sshd is a running OpenSSH server on a free port of the loopback, with
// keys of its own, that lets the current user in.
type Sshd struct {
	config SshdConfig
	user   string
	addr   string
	cmd    *exec.Cmd
	ended  chan struct{} // closed when sshd has been waited for

	mu      sync.Mutex
	log     strings.Builder
	onLogin func()
	files   int // client configurations written
}

// StartSshd starts a server and returns when it listens.
func StartSshd(config SshdConfig) (*Sshd, error) {
	who, err := user.Current()
	if err != nil {
		return nil, err
	}
	s := &Sshd{config: config, user: who.Username}
	if err := s.prepare(); err != nil {
		return nil, fmt.Errorf("prepare sshd: %w", err)
	}
	// Another process may take the port between its choice and sshd's bind.
	for range 5 {
		if err = s.start(); err == nil {
			return s, nil
		}
	}
	return nil, fmt.Errorf("start sshd: %w: %s", err, s.Log())
}

// Addr returns the host:port that the server listens on.
func (s *Sshd) Addr() string { return s.addr }

// Log returns what the server has logged so far.
func (s *Sshd) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// OnLogin has f called whenever somebody has authenticated; nil ends that.
// The call comes within a few milliseconds of the client's learning of it.
func (s *Sshd) OnLogin(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onLogin = f
}

// Close kills the server and its connections.
func (s *Sshd) Close() error {
	err := syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	<-s.ended
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

func (s *Sshd) file(name string) string { return filepath.Join(s.config.Dir, name) }

// prepare writes all files but sshd_config, which needs the port.
func (s *Sshd) prepare() error {
	if os.Getuid() == 0 {
		// sshd's privilege separation wants this directory, which is
		// otherwise made when the system's own sshd is started.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			return err
		}
	}
	if _, err := WriteKey(s.file("host_key")); err != nil {
		return err
	}
	key, err := WriteKey(s.file("user_key"))
	if err != nil {
		return err
	}
	if c := s.config.KeyCommand; c != "" {
		key = fmt.Sprintf("command=\"%s\" %s", strings.ReplaceAll(c, `"`, `\"`), key)
	}
	return errors.Join(
		os.WriteFile(s.file("authorized_keys"), []byte(key), 0o644), // other users read it, too
		os.WriteFile(s.file("banner"), []byte(s.config.Banner), 0o644),
		os.WriteFile(s.file("noise"), []byte(s.config.Noise), 0o644),
		os.WriteFile(s.file("noisy"), []byte(s.noisyShell()), 0o755),
	)
}

// noisyShell is a forced command that prints the noise and then behaves as if
// no command had been forced.
func (s *Sshd) noisyShell() string {
	return `#!/bin/sh
cat '` + s.file("noise") + `'
command=$SSH_ORIGINAL_COMMAND
unset SSH_ORIGINAL_COMMAND
exec sh -c "$command"
`
}

// WriteKey makes a key pair: the private key in file, the public key beside it
// in file.pub. It returns the public key as a line of authorized_keys.
func WriteKey(file string) (string, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	block, err := ssh.MarshalPrivateKey(private, "test")
	if err != nil {
		return "", err
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return "", err
	}
	line := string(ssh.MarshalAuthorizedKey(key))
	return line, errors.Join(
		os.WriteFile(file, pem.EncodeToMemory(block), 0o600),
		os.WriteFile(file+".pub", []byte(line), 0o644),
	)
}

func (s *Sshd) sshdConfig(port int) string {
	lines := append([]string{}, s.config.Options...)
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	add("ListenAddress %s", net.JoinHostPort(s.address(), fmt.Sprint(port)))
	add("HostKey %s", s.file("host_key"))
	add("AuthorizedKeysFile %s", s.file("authorized_keys"))
	add("PidFile none")
	add("StrictModes no")
	add("UsePAM no")
	add("PermitRootLogin yes")
	add("PasswordAuthentication no")
	add("KbdInteractiveAuthentication no")
	add("MaxStartups 100")
	if !s.config.NoSFTP {
		add("Subsystem sftp internal-sftp")
	}
	if s.config.MaxSessions > 0 {
		add("MaxSessions %d", s.config.MaxSessions)
	}
	if s.config.Banner != "" {
		add("Banner %s", s.file("banner"))
	}
	switch {
	case s.config.ForceCommand != "":
		add("ForceCommand %s", s.config.ForceCommand)
	case s.config.Noise != "":
		add("ForceCommand %s", s.file("noisy"))
	}
	if len(s.config.Env) > 0 {
		// sshd heeds only the first line of this kind.
		add("SetEnv %s", quoteEnv(s.config.Env))
	}
	return strings.Join(lines, "\n") + "\n"
}

func quoteEnv(env []string) string {
	var quoted []string
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		quoted = append(quoted, fmt.Sprintf(`%s="%s"`, name, escape.Replace(value)))
	}
	return strings.Join(quoted, " ")
}

// start starts sshd on a port that was free a moment ago and waits until it
// listens.
func (s *Sshd) start() error {
	port, err := freePort(s.address())
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.file("sshd_config"), []byte(s.sshdConfig(port)), 0o644); err != nil {
		return err
	}
	// sshd re-executes itself and insists on an absolute path for that.
	sshd, err := lookPath("sshd")
	if err != nil {
		return err
	}
	args := append(append([]string{}, s.config.Prefix...), sshd, "-D", "-e", "-f", s.file("sshd_config"))
	cmd := exec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = ownGroup()
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.cmd, s.ended = cmd, make(chan struct{})
	s.addr = net.JoinHostPort(s.address(), fmt.Sprint(port))
	listening := make(chan struct{})
	go s.follow(stderr, listening)
	select {
	case <-listening:
		return nil
	case <-s.ended:
		return errors.New("ended before it listened")
	case <-time.After(20 * time.Second):
		return errors.Join(errors.New("not listening after 20 s"), s.Close())
	}
}

// follow reads the server's log until its end and then waits for the server.
func (s *Sshd) follow(log io.Reader, listening chan<- struct{}) {
	defer close(s.ended)
	defer s.cmd.Wait()
	heard := false
	for lines := bufio.NewScanner(log); lines.Scan(); {
		line := lines.Text()
		s.mu.Lock()
		s.log.WriteString(line + "\n")
		hook := s.onLogin
		s.mu.Unlock()
		switch {
		case strings.HasPrefix(line, "Accepted publickey") && hook != nil:
			hook()
		case strings.HasPrefix(line, "Server listening") && !heard:
			heard = true
			close(listening)
		}
	}
}

func (s *Sshd) address() string { return cmp.Or(s.config.Address, "127.0.0.1") }

func freePort(address string) (int, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// ClientConfig writes a configuration for OpenSSH's client in which the host
// [FarHost] is this server, reached at addr, for example that of a [Relay].
// It returns the file, to be used as ssh -F FILE or NIX_SSHOPTS="-F FILE".
func (s *Sshd) ClientConfig(addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	return s.writeClient(knownhosts.Normalize(addr), "HostName "+host, "Port "+port)
}

// PipeConfig is a ClientConfig that needs no port: ssh starts a server process
// of its own for each connection (sshd -i behind ProxyCommand). Its log lies
// in sshd-i.log in the server's directory.
func (s *Sshd) PipeConfig() (string, error) {
	sshd, err := lookPath("sshd")
	if err != nil {
		return "", err
	}
	return s.writeClient(FarHost, fmt.Sprintf("ProxyCommand %s -i -E %s -f %s",
		sshd, s.file("sshd-i.log"), s.file("sshd_config")))
}

// writeClient writes a client configuration with the lines that say how to
// connect, and a known_hosts that has the server's key under the name known.
func (s *Sshd) writeClient(known string, connect ...string) (string, error) {
	s.mu.Lock()
	s.files++
	number := s.files
	s.mu.Unlock()
	hostKey, err := os.ReadFile(s.file("host_key.pub"))
	if err != nil {
		return "", err
	}
	config := s.file(fmt.Sprintf("ssh_config-%d", number))
	knownHosts := s.file(fmt.Sprintf("known_hosts-%d", number))
	lines := append([]string{"Host " + FarHost}, connect...)
	lines = append(lines,
		"User "+s.user,
		"IdentityFile "+s.file("user_key"),
		"IdentitiesOnly yes",
		"IdentityAgent none",
		"UserKnownHostsFile "+knownHosts,
		"GlobalKnownHostsFile none",
		"StrictHostKeyChecking yes",
		"BatchMode yes",
	)
	return config, errors.Join(
		os.WriteFile(config, []byte(strings.Join(lines, "\n  ")+"\n"), 0o644),
		os.WriteFile(knownHosts, []byte(known+" "+string(hostKey)), 0o644),
	)
}

// LendKey makes a copy of the user's key and of a client configuration that
// another user can use, since ssh refuses private keys that others may read.
// The server's directory must be one that the other user may enter.
func (s *Sshd) LendKey(config string, uid, gid int) (string, error) {
	key, err := os.ReadFile(s.file("user_key"))
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(config)
	if err != nil {
		return "", err
	}
	lentKey := s.file(fmt.Sprintf("user_key-%d", uid))
	lent := fmt.Sprintf("%s-%d", config, uid)
	changed := strings.ReplaceAll(string(text), s.file("user_key"), lentKey)
	return lent, errors.Join(
		os.WriteFile(lentKey, key, 0o600),
		os.Chown(lentKey, uid, gid),
		os.WriteFile(lent, []byte(changed), 0o644),
	)
}

package transport_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/transport"
)

// makeKey has ssh-keygen make a key pair, and returns the file of its private half.
func makeKey(t *testing.T, words ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	keygen(t, append(words, "-N", "", "-f", file)...)
	return file
}

func keygen(t *testing.T, words ...string) {
	t.Helper()
	if out, err := exec.Command(needProgram(t, "ssh-keygen"), append([]string{"-q"}, words...)...).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen %q: %v: %s", words, err, out)
	}
}

// Where the user's ssh refuses a host, or is refused, so is the built-in client, and
// what is configured to be let in is reached, by ssh if need be.
func TestRefusesWhatSSHRefuses(t *testing.T) {
	ssh := needProgram(t, "ssh")
	rsa := makeKey(t, "-t", "rsa", "-b", "2048")
	authority := makeKey(t, "-t", "rsa", "-b", "2048")
	weak := makeKey(t, "-t", "rsa", "-b", "1024")
	revoked := filepath.Join(t.TempDir(), "revoked")
	// certified returns a host certificate for the ed25519 key that hosts have here.
	certified := func(h *host, by string, words ...string) string {
		keygen(t, append([]string{"-s", by, "-h", "-I", "x", "-n", "127.0.0.1"}, append(words, h.hostKey.file+".pub")...)...)
		return h.hostKey.file + "-cert.pub"
	}
	byAuthority := func(ca string) func(*testing.T, *host) string {
		return func(t *testing.T, _ *host) string { return "@cert-authority * " + read(t, ca+".pub") }
	}
	tests := []struct {
		name   string
		server []string
		cert   []string // the host has a certificate: by whom, and words for ssh-keygen
		client []string
		known  func(*testing.T, *host) string
		key    string // of the user; empty: an ed25519 key
	}{
		{name: "nothing special"},
		{name: "short host key", server: []string{"HostKey " + rsa}, client: []string{"RequiredRSASize 4096", "HostKeyAlgorithms rsa-sha2-512"}},
		{name: "host key long enough", server: []string{"HostKey " + rsa}, client: []string{"RequiredRSASize 2048", "HostKeyAlgorithms rsa-sha2-512"}},
		{name: "short user key", key: rsa, client: []string{"RequiredRSASize 4096"}},
		{name: "user key long enough", key: rsa},
		{name: "user key type", client: []string{"PubkeyAcceptedAlgorithms rsa-sha2-256"}},
		{name: "user key signature", key: rsa, server: []string{"PubkeyAcceptedAlgorithms rsa-sha2-256"}, client: []string{"PubkeyAcceptedAlgorithms rsa-sha2-512"}},
		{name: "SHA-1 user signature", key: rsa, server: []string{"PubkeyAcceptedAlgorithms ssh-rsa"}},
		{name: "SHA-1 user signature, configured", key: rsa, server: []string{"PubkeyAcceptedAlgorithms ssh-rsa"}, client: []string{"PubkeyAcceptedAlgorithms +ssh-rsa"}},
		{name: "certificate", cert: []string{authority, "-t", "rsa-sha2-256"}, known: byAuthority(authority)},
		{name: "SHA-1 certificate", cert: []string{authority, "-t", "ssh-rsa"}, known: byAuthority(authority)},
		{name: "SHA-1 certificate, configured", cert: []string{authority, "-t", "ssh-rsa"}, known: byAuthority(authority), client: []string{"CASignatureAlgorithms +ssh-rsa"}},
		{name: "certificate algorithm", cert: []string{authority, "-t", "rsa-sha2-256"}, known: byAuthority(authority), client: []string{"CASignatureAlgorithms rsa-sha2-512"}},
		{name: "weak certificate authority", cert: []string{weak, "-t", "rsa-sha2-256"}, known: byAuthority(weak), client: []string{"RequiredRSASize 2048"}},
		{name: "SHA-1 key exchange", server: []string{"KexAlgorithms diffie-hellman-group14-sha1"}},
		{name: "SHA-1 key exchange, configured", server: []string{"KexAlgorithms diffie-hellman-group14-sha1"}, client: []string{"KexAlgorithms +diffie-hellman-group14-sha1"}},
		{name: "key exchange", server: []string{"KexAlgorithms ecdh-sha2-nistp256"}, client: []string{"KexAlgorithms curve25519-sha256"}},
		{name: "short MAC", server: []string{"MACs hmac-sha1-96", "Ciphers aes128-ctr"}},
		{name: "cipher", server: []string{"Ciphers aes128-cbc"}},
		{name: "cipher, configured", server: []string{"Ciphers aes128-cbc"}, client: []string{"Ciphers +aes128-cbc"}},
		{name: "host key algorithm", client: []string{"HostKeyAlgorithms rsa-sha2-512"}},
		{name: "SHA-1 host key", server: []string{"HostKey " + rsa, "HostKeyAlgorithms ssh-rsa"}},
		{name: "revoked keys", client: []string{"RevokedHostKeys " + revoked}},
		{name: "no known hosts", client: []string{"UserKnownHostsFile none"}},
		{name: "no keys", client: []string{"PubkeyAuthentication no"}},
		{name: "other methods", client: []string{"PreferredAuthentications password"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			cert := filepath.Join(dir, "cert")
			if test.cert != nil {
				test.server = append(test.server, "HostCertificate "+cert)
			}
			h, s := newHost(t, test.server...), newSetup(t)
			if test.cert != nil {
				write(t, cert, read(t, certified(h, test.cert[0], test.cert[1:]...)))
			}
			write(t, revoked, h.hostKey.line()+"\n")
			known := fmt.Sprintf("[127.0.0.1]:%d ", h.port())
			if test.known == nil {
				s.know(known + h.hostKey.line())
				s.know(known + read(t, rsa+".pub"))
			} else {
				s.know(test.known(t, h))
			}
			if test.key != "" {
				h.userKey.file = test.key
				write(t, filepath.Join(h.dir, "authorized"), read(t, test.key+".pub"))
			}
			s.addUnknown("there", h, append(test.client, "StrictHostKeyChecking yes")...)
			err := exec.Command(ssh, "-F", s.options.SSHOptions[1], "-oBatchMode=yes", "there", "true").Run()
			conn, ours := s.dial(t.Context(), "there")
			switch {
			case err != nil && ours == nil:
				t.Errorf("ssh refuses, and ours is let in by %s", conn.Describe())
			case err == nil && ours != nil && test.name != "weak certificate authority":
				t.Errorf("ssh gets there, and ours does not: %v", ours)
			}
			s.options.Program = transport.ProgramBuiltin
			if err != nil {
				if _, ours := s.dial(t.Context(), "there"); ours == nil {
					t.Error("ssh refuses, and the built-in client alone is let in")
				}
			}
		})
	}
}

// offered returns the lists of algorithms that a client names at the beginning.
func offered(t *testing.T, s *setup, connect func()) [][]string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, address: l.Addr(), userKey: key{file: "/nonexistent"}}
	s.addUnknown("there", h)
	lists := make(chan [][]string, 1)
	go func() {
		defer close(lists)
		conn, err := l.Accept()
		l.Close()
		if err != nil {
			return
		}
		defer conn.Close()
		io.WriteString(conn, "SSH-2.0-OpenSSH_9.2\r\n")
		lists <- readKexInit(conn)
	}()
	connect()
	return <-lists
}

// readKexInit reads the client's version and its SSH_MSG_KEXINIT (RFC 4253, section 7.1).
func readKexInit(conn io.Reader) [][]string {
	for b := []byte{0}; b[0] != '\n'; {
		if _, err := io.ReadFull(conn, b); err != nil {
			return nil
		}
	}
	head := make([]byte, 4)
	if _, err := io.ReadFull(conn, head); err != nil {
		return nil
	}
	packet := make([]byte, binary.BigEndian.Uint32(head))
	if _, err := io.ReadFull(conn, packet); err != nil {
		return nil
	}
	var lists [][]string
	for rest := packet[1+1+16:]; len(lists) < 6; {
		n := binary.BigEndian.Uint32(rest)
		lists = append(lists, strings.Split(string(rest[4:4+n]), ","))
		rest = rest[4+n:]
	}
	return lists
}

// The built-in client offers no algorithm that the user's ssh does not.
func TestOffersWhatSSHOffers(t *testing.T) {
	ssh := needProgram(t, "ssh")
	for _, config := range []string{"debian", "fedora", "nixos"} {
		file, err := filepath.Abs("testdata/ssh_config/" + config)
		if err != nil {
			t.Fatal(err)
		}
		s := newSetup(t)
		s.blocks = []string{"Include " + file}
		theirs := offered(t, s, func() {
			exec.Command(ssh, "-F", s.options.SSHOptions[1], "-oBatchMode=yes", "there").Run()
		})
		s.options.Program = transport.ProgramBuiltin
		s.blocks = []string{"Include " + file}
		ours := offered(t, s, func() { s.dial(t.Context(), "there") })
		if len(theirs) != 6 || len(ours) != 6 {
			t.Fatalf("%s: got %q and %q", config, theirs, ours)
		}
		for i, list := range ours {
			for _, name := range list {
				// The library names one algorithm by both of its names.
				other, _ := strings.CutSuffix(name, "@libssh.org")
				if !slices.Contains(theirs[i], name) && !slices.Contains(theirs[i], other) {
					t.Errorf("%s: list %d has %s, the list of ssh has not: %q", config, i, name, theirs[i])
				}
			}
		}
	}
}

// Without an ssh to ask, nothing is offered that OpenSSH no longer does.
func TestOffersNothingInsecure(t *testing.T) {
	withoutSSH(t)
	s := newSetup(t)
	for i, list := range offered(t, s, func() { s.dial(t.Context(), "there") }) {
		for _, name := range list {
			for _, bad := range []string{"sha1-96", "group1-", "group14-sha1", "exchange-sha1", "cbc", "arcfour", "ssh-dss"} {
				if strings.Contains(name, bad) || name == "ssh-rsa" || strings.HasPrefix(name, "ssh-rsa-") {
					t.Errorf("list %d has %s", i, name)
				}
			}
		}
	}
}

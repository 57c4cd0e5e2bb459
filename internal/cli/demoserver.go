package cli

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// A demoServer is an SSH server on the loopback that lets in one key and runs what
// it is asked to, as this user.
type demoServer struct {
	clientOptions []string // for ssh, or for us
	listener      net.Listener
	config        *ssh.ServerConfig
	env           []string
	stop          context.CancelFunc
	running       sync.WaitGroup
}

// startDemoServer makes keys in dir, and puts this program there under its name
// where a login shell finds it.
func startDemoServer(ctx context.Context, dir string) (*demoServer, error) {
	hostKey, _, err := makeKey(dir, "host_key")
	if err != nil {
		return nil, err
	}
	userKey, userFile, err := makeKey(dir, "user_key")
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return nil, err
	}
	if err := os.Symlink(self, filepath.Join(bin, "copy-closure")); err != nil {
		return nil, err
	}
	s := &demoServer{
		config: serverConfig(hostKey, userKey.PublicKey()),
		env:    append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH")),
	}
	if s.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	known := filepath.Join(dir, "known_hosts")
	line := knownhosts.Line([]string{s.address()}, hostKey.PublicKey()) + "\n"
	if err := os.WriteFile(known, []byte(line), 0o600); err != nil {
		return nil, errors.Join(err, s.listener.Close())
	}
	s.clientOptions = []string{
		"-F", "none", "-i", userFile,
		"-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none",
		"-o", "UserKnownHostsFile=" + known, "-o", "GlobalKnownHostsFile=none", "-o", "StrictHostKeyChecking=yes",
	}
	ctx, s.stop = context.WithCancel(ctx)
	s.running.Go(func() { s.accept(ctx) })
	return s, nil
}

// makeKey writes a new private key to dir.
func makeKey(dir, name string) (signer ssh.Signer, file string, err error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, "", err
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		return nil, "", err
	}
	file = filepath.Join(dir, name)
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		return nil, "", err
	}
	signer, err = ssh.NewSignerFromKey(private)
	return signer, file, err
}

func serverConfig(hostKey ssh.Signer, allowed ssh.PublicKey) *ssh.ServerConfig {
	config := &ssh.ServerConfig{
		ServerVersion: "SSH-2.0-copy-closure",
		PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if string(key.Marshal()) != string(allowed.Marshal()) {
				return nil, fmt.Errorf("key is not known")
			}
			return nil, nil
		},
	}
	config.AddHostKey(hostKey)
	return config
}

func (s *demoServer) address() string { return s.listener.Addr().String() }

// close ends all connections and waits until their commands are gone.
func (s *demoServer) close() {
	s.listener.Close()
	s.stop()
	s.running.Wait()
}

func (s *demoServer) accept(ctx context.Context) {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.running.Go(func() { s.serve(ctx, conn) })
	}
}

// serve handles one connection.
func (s *demoServer) serve(ctx context.Context, raw net.Conn) {
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	conn, channels, requests, err := ssh.NewServerConn(raw, s.config)
	if err != nil {
		raw.Close()
		return
	}
	defer conn.Close()
	s.running.Go(func() { ssh.DiscardRequests(requests) })
	for channel := range channels {
		if channel.ChannelType() != "session" {
			channel.Reject(ssh.UnknownChannelType, "only sessions")
			continue
		}
		stream, requests, err := channel.Accept()
		if err != nil {
			return
		}
		s.running.Go(func() { s.session(ctx, stream, requests) })
	}
}

// session runs the one command of a session.
func (s *demoServer) session(ctx context.Context, stream ssh.Channel, requests <-chan *ssh.Request) {
	defer stream.Close()
	for request := range requests {
		var exec struct{ Command string }
		isExec := request.Type == "exec" && ssh.Unmarshal(request.Payload, &exec) == nil
		if request.WantReply {
			request.Reply(isExec, nil)
		}
		if isExec {
			s.running.Go(func() { ssh.DiscardRequests(requests) })
			status := s.run(ctx, stream, exec.Command)
			stream.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{status}))
			return
		}
	}
}

// run gives a command to the shell.
func (s *demoServer) run(ctx context.Context, stream ssh.Channel, command string) (status uint32) {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Env, cmd.Stdout, cmd.Stderr = s.env, stream, stream.Stderr()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return 1
	}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(stream.Stderr(), err)
		return 127
	}
	s.running.Go(func() {
		io.Copy(stdin, stream)
		stdin.Close()
	})
	if err := cmd.Wait(); err != nil {
		return 1
	}
	return 0
}

package e2e_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
)

// A cacheServer is a "copy-closure cache serve" that a script has started.
type cacheServer struct {
	cmd     *exec.Cmd
	reading sync.WaitGroup
}

func cmdCacheServer(s script, args []string) error {
	if len(args) == 1 && args[0] == "stop" {
		server := s.cacheServer
		s.cacheServer = nil
		if server == nil {
			return errors.New("no cache server was started")
		}
		return server.stop()
	}
	server, url, err := s.startCacheServer(args)
	if err != nil {
		return err
	}
	s.state.cacheServer = server
	s.Defer(func() {
		if s.state.cacheServer == server {
			s.Check(server.stop())
		}
	})
	s.Setenv("cache", url)
	return nil
}

// startCacheServer starts a server on a free port. What it says goes to server.log.
func (s script) startCacheServer(args []string) (*cacheServer, string, error) {
	log, err := os.OpenFile(s.MkAbs("server.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, "", err
	}
	line := append([]string{s.Getenv("bin") + "/copy-closure", "cache", "serve", "--listen", "127.0.0.1:0"}, args...)
	server := &cacheServer{cmd: exec.CommandContext(s.ctx, line[0], line[1:]...)}
	if len(args) > 0 && args[0] == "-socket" {
		line = append(line[:3], args[1:]...)
		if server.cmd, err = socketActivated(s.ctx, line); err != nil {
			return nil, "", err
		}
	}
	server.cmd.Dir, server.cmd.Env = s.MkAbs("."), s.env.Vars
	stderr, err := server.cmd.StderrPipe()
	if err != nil {
		return nil, "", err
	}
	if err := server.cmd.Start(); err != nil {
		return nil, "", err
	}
	lines := bufio.NewReader(stderr)
	first, err := lines.ReadString('\n')
	server.reading.Go(func() {
		io.Copy(log, lines)
		log.Close()
	})
	_, url, ok := strings.Cut(strings.TrimSpace(first), "listening on ")
	if !ok {
		return nil, "", errors.Join(fmt.Errorf("it says %q", first), err, server.stop())
	}
	return server, url, nil
}

// socketActivated starts a program as systemd would that has a socket for it.
func socketActivated(ctx context.Context, line []string) (*exec.Cmd, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return nil, err
	}
	script := []string{"-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`, "sh"}
	cmd := exec.CommandContext(ctx, "sh", append(script, line...)...)
	cmd.ExtraFiles = []*os.File{f} // is closed by the garbage collector, after Start
	return cmd, nil
}

// stop asks the server to end, which is to end it without an error.
func (c *cacheServer) stop() error {
	err := c.cmd.Process.Signal(syscall.SIGTERM)
	c.reading.Wait()
	return errors.Join(err, c.cmd.Wait())
}

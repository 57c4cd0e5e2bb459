package localstore

import (
	"bufio"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A collector is what others see of a garbage collection: a socket that tells them
// when a path may be taken as a temporary root.
type collector struct {
	listener net.Listener // nil where the socket's name would be too long
	deleting map[string]bool
	finished chan struct{} // closed when the paths are deleted
	serving  sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
}

// startCollector needs the exclusive lock.
func (s *Store) startCollector(paths []nix.StorePath) (*collector, error) {
	c := &collector{deleting: make(map[string]bool, len(paths)), finished: make(chan struct{})}
	for _, p := range paths {
		if err := s.checkDir(p); err != nil {
			return nil, err
		}
		c.deleting[p.Base()] = true
	}
	socket := s.config.state("gc-socket/socket")
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, err
	}
	// Of a collector that died.
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var err error
	if c.listener, err = net.Listen("unix", socket); err != nil {
		// Without it others wait until we release the lock.
		s.log.Debug("no socket for others while deleting", "error", err)
		return c, nil
	}
	if err := os.Chmod(socket, 0o666); err != nil {
		return nil, errors.Join(err, c.close())
	}
	c.serving.Go(c.accept)
	return c, nil
}

func (c *collector) accept() {
	for {
		conn, err := c.listener.Accept()
		if err != nil {
			return // closed
		}
		c.mu.Lock()
		c.conns = append(c.conns, conn)
		c.mu.Unlock()
		c.serving.Go(func() { c.serve(conn) })
	}
}

// serve answers each path with a byte, those that are being deleted when they are.
func (c *collector) serve(conn net.Conn) {
	defer conn.Close()
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		if c.deleting[filepath.Base(lines.Text())] {
			<-c.finished
		}
		if _, err := conn.Write([]byte("1")); err != nil {
			return
		}
	}
}

// close answers those who wait, and hangs up.
func (c *collector) close() error {
	close(c.finished)
	if c.listener == nil {
		return nil
	}
	err := c.listener.Close()
	c.mu.Lock()
	for _, conn := range c.conns {
		conn.SetDeadline(time.Now().Add(time.Second)) // lest one who does not read holds us up
		if unix, ok := conn.(*net.UnixConn); ok {
			unix.CloseRead()
		}
	}
	c.mu.Unlock()
	c.serving.Wait()
	return err
}

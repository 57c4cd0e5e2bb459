package transport_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/copy-closure/copy-closure/transport"
)

// TestDialUnixWaits connects many at once to a listener whose queue is full.
func TestDialUnixWaits(t *testing.T) {
	dir, err := os.MkdirTemp("", "unix")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "socket")
	listener := listenWithoutQueue(t, path)
	defer listener.Close()
	canceled, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := transport.DialUnix(canceled, path); !errors.Is(err, context.Canceled) {
		t.Errorf("DialUnix while the queue is full: %v", err)
	}
	var dialing sync.WaitGroup
	for range 8 {
		dialing.Go(func() {
			conn, err := transport.DialUnix(t.Context(), path)
			if err != nil {
				t.Error(err)
				return
			}
			conn.Close()
		})
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	dialing.Wait()
	if _, err := transport.DialUnix(t.Context(), path+"-none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("DialUnix of no socket: %v", err)
	}
}

// listenWithoutQueue returns a listener that already refuses connections with EAGAIN.
func listenWithoutQueue(t *testing.T, path string) net.Listener {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		err = errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 0))
	}
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	listener, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	for {
		conn, err := net.Dial("unix", path)
		if errors.Is(err, syscall.EAGAIN) {
			return listener
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	}
}

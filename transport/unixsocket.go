package transport

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"
)

// DialUnix connects to the Unix socket at path. While the queue of its listener is full
// it waits, as a connect that blocks does, until ctx ends.
func DialUnix(ctx context.Context, path string) (net.Conn, error) {
	for delay := time.Millisecond; ; delay = min(2*delay, 50*time.Millisecond) {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if !errors.Is(err, syscall.EAGAIN) {
			return conn, err
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

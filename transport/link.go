package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// A link is the connection below SSH. It counts what comes in, which tells a slow
// link from a dead one.
type link struct {
	net.Conn
	received atomic.Int64
}

func (l *link) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	l.received.Add(int64(n))
	return n, err
}

// loginTime is how long a log-in may take: more than sshd's LoginGraceTime, so that
// the host decides where it is alive.
const loginTime = 150 * time.Second

// A handshakeWatch closes a connection on which the log-in does not come to an end.
type handshakeWatch struct {
	timer   *time.Timer
	unwatch func() bool // of the context

	mu    sync.Mutex
	over  bool
	stuck bool
	limit time.Duration // the last one set
}

func watchHandshake(ctx context.Context, conn net.Conn, limit time.Duration) *handshakeWatch {
	w := &handshakeWatch{limit: limit, unwatch: context.AfterFunc(ctx, func() { conn.Close() })}
	w.timer = time.AfterFunc(limit, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.over {
			w.stuck = true
			conn.Close()
		}
	})
	return w
}

// pause gives the person at the terminal all the time he wants.
func (w *handshakeWatch) pause() { w.timer.Stop() }

// resume gives the host another while. It does nothing after stop: keys are exchanged
// again long after the log-in.
func (w *handshakeWatch) resume(limit time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		w.limit = limit
		w.timer.Reset(limit)
	}
}

// stop ends the watch, and returns an error if it closed the connection.
func (w *handshakeWatch) stop() error {
	w.unwatch()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	w.timer.Stop()
	if w.stuck {
		return fmt.Errorf("no answer within %v", w.limit)
	}
	return nil
}

// A proxyConn is a ProxyCommand as a network connection.
type proxyConn struct {
	*Session
	name string
}

func (c proxyConn) Read(b []byte) (int, error) {
	n, err := c.Session.Read(b)
	if errors.Is(err, io.EOF) {
		// How the command ended says more than that it did.
		if exit := c.lastWords(); exit != nil {
			err = exit
		}
	}
	return n, err
}

// Close ends the command at once: it has nothing to finish.
func (c proxyConn) Close() error {
	c.abort(net.ErrClosed)
	c.Session.Close()
	return nil
}

func (c proxyConn) LocalAddr() net.Addr  { return proxyAddr(c.name) }
func (c proxyConn) RemoteAddr() net.Addr { return proxyAddr(c.name) }

// SSH sets no deadlines on its connection.

func (c proxyConn) SetDeadline(time.Time) error      { return errors.ErrUnsupported }
func (c proxyConn) SetReadDeadline(time.Time) error  { return errors.ErrUnsupported }
func (c proxyConn) SetWriteDeadline(time.Time) error { return errors.ErrUnsupported }

// A proxyAddr is the address of a host that is reached by a command.
type proxyAddr string

func (a proxyAddr) Network() string { return "proxy" }
func (a proxyAddr) String() string  { return strings.TrimSpace(string(a)) }

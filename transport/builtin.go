package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/cpu"
)

// A client is a connection of the built-in client.
type client struct {
	conn    *ssh.Client
	link    *link
	address string
	config  *hostConfig
	via     *client // the jump host below; nil: none
	log     *slog.Logger
	stderr  func(string)
	login   Login

	authenticated time.Time
	sessionEnded  atomic.Int64 // when the last one did, in Unix nanoseconds
	rtt           atomic.Int64 // in nanoseconds; 0: unknown

	cause atomic.Pointer[error] // why we broke it off, if we did
	dead  chan struct{}         // closed when the connection is gone
	err   error                 // why it is gone; set before dead is closed
	stop  func() bool           // of the context's watch

	mu     sync.Mutex
	closed bool
	spare  []*opening // reserved channels
	tasks  sync.WaitGroup
}

// spawn runs f beside the caller, and has Close wait for it. On a closed connection,
// where nothing blocks, the caller waits himself.
func (c *client) spawn(f func()) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		f()
		return
	}
	c.tasks.Go(f)
	c.mu.Unlock()
}

// dialBuiltin connects along the plan, the farthest jump host first.
func (d *dialer) dialBuiltin(ctx context.Context, p *plan) (c *client, err error) {
	var via *client
	if p.via != nil {
		if via, err = d.dialBuiltin(ctx, p.via); err != nil {
			return nil, fmt.Errorf("jump host %s: %w", p.via.config.alias, err)
		}
		defer func() {
			if err != nil {
				via.Close()
			}
		}()
	}
	check, err := d.hostKeyCheck(p)
	if err != nil {
		return nil, err
	}
	raw, err := d.connect(ctx, p.config, via)
	if err != nil {
		return nil, &ConnectError{Address: p.config.address(), Err: err}
	}
	c = &client{
		link:    &link{Conn: raw},
		address: p.config.address(),
		config:  p.config,
		via:     via,
		log:     d.Logger,
		stderr:  d.Stderr,
		dead:    make(chan struct{}),
	}
	if err := d.logIn(ctx, c, p, check); err != nil {
		return nil, err
	}
	c.stop = context.AfterFunc(ctx, func() { c.fail(context.Cause(ctx)) })
	d.Logger.Debug("authenticated", "host", c.address, "user", p.config.user, "client", ProgramBuiltin,
		"cipher", c.cipher(), "rtt", c.RTT())
	return c, nil
}

func (d *dialer) hostKeyCheck(p *plan) (*hostKeyCheck, error) {
	check := &hostKeyCheck{config: p.config, ask: d.prompter(p.config), warn: func(text string) { d.Logger.Warn(text) }}
	if d.HostKey != "" && p.target {
		pinned := *p.config
		pinned.strictHostKeys = "yes" // whatever is configured: this key or none
		check.config = &pinned
		known, err := pinnedHost(p.config, d.HostKey)
		check.known = known
		return check, err
	}
	known, err := readKnownHosts(slices.Concat(p.config.userKnownHosts, p.config.globalKnownHosts))
	check.known = known.matching(p.config)
	return check, err
}

func (d *dialer) prompter(c *hostConfig) Prompter {
	if c.batch {
		return nil
	}
	return d.Prompter
}

// connect returns a connection to the host's SSH server.
func (d *dialer) connect(ctx context.Context, c *hostConfig, via *client) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.connectTimeout, fmt.Errorf("no connection within %v", c.connectTimeout))
	defer cancel()
	switch {
	case via != nil:
		return via.conn.DialContext(ctx, "tcp", c.address())
	case c.proxyCommand != "":
		return d.runProxy(c)
	}
	dialer := net.Dialer{}
	if c.bindAddress != "" {
		local, err := net.ResolveTCPAddr(c.network, net.JoinHostPort(c.bindAddress, "0"))
		if err != nil {
			return nil, fmt.Errorf("bind address: %w", err)
		}
		dialer.LocalAddr = local
	}
	conn, err := dialer.DialContext(ctx, c.network, c.address())
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if failed, ok := errors.AsType[*net.OpError](err); ok {
		return nil, failed.Err // without the address, which the caller adds
	}
	return conn, err
}

// runProxy starts a ProxyCommand. It may ask things at the terminal, so where
// somebody is there it stays in our process group.
func (d *dialer) runProxy(c *hostConfig) (net.Conn, error) {
	shell := os.Getenv("SHELL")
	if shell == "" {
		shell = "/bin/sh"
	}
	p, err := startLocal(localSpec{
		argv:     []string{shell, "-c", "exec " + c.proxyCommand},
		name:     "ProxyCommand " + c.proxyCommand,
		ownGroup: d.Prompter == nil,
		stderr:   d.Stderr,
		log:      d.Logger,
	})
	if err != nil {
		return nil, err
	}
	// The connection on top ends the command; it has no context of its own.
	return proxyConn{newSession(context.Background(), p), c.address()}, nil
}

// logIn runs the handshake on c's link. On failure the link is closed.
func (d *dialer) logIn(ctx context.Context, c *client, p *plan, check *hostKeyCheck) error {
	l := &login{client: c, config: p.config, keys: p.keys, ask: check.ask, check: check}
	l.watch = watchHandshake(ctx, c.link, p.config.connectTimeout)
	conn, channels, requests, err := ssh.NewClientConn(c.link, c.address, l.sshConfig(ctx))
	stuck := l.watch.stop()
	if err == nil && stuck == nil {
		c.login = Login{Address: c.address, User: c.config.user, Verified: check.verified}
		if key := check.accepted; key != nil {
			c.login.HostKey = key.Type() + " " + ssh.FingerprintSHA256(key)
		}
		if len(l.tried) > 0 {
			c.login.Method = l.tried[len(l.tried)-1]
		}
		c.serve(ssh.NewClient(conn, channels, requests))
		return nil
	}
	c.link.Close()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case check.err != nil:
		return check.err
	case stuck != nil:
		return &ConnectError{Address: c.address, Err: stuck}
	case check.accepted != nil && !isNetworkError(err):
		return l.refused(err)
	}
	return &ConnectError{Address: c.address, Err: explainHandshake(err)}
}

// explainHandshake says what the end of a stream means here.
func explainHandshake(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("the host closed the connection before the log-in was done")
	}
	return err
}

// isNetworkError reports whether err comes from the connection below SSH, as opposed
// to what the host said on it.
func isNetworkError(err error) bool {
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// serve watches over a connection that is logged in.
func (c *client) serve(conn *ssh.Client) {
	c.conn = conn
	c.authenticated = time.Now()
	c.spawn(func() {
		err := conn.Wait()
		if errors.Is(err, io.EOF) {
			err = errors.New("closed by the host")
		}
		if cause := c.cause.Load(); cause != nil {
			err = *cause
		}
		c.err = &LostError{Address: c.address, Err: err}
		close(c.dead)
	})
	c.spawn(c.keepAlive)
	c.spawn(c.measure)
}

// fail closes the connection, and those below it, for a reason of ours.
func (c *client) fail(reason error) {
	c.cause.CompareAndSwap(nil, &reason)
	if c.via != nil {
		c.via.fail(reason) // or closing the link would wait for the jump host
	}
	c.link.Close()
}

func (c *client) banner(message string) error {
	for line := range strings.Lines(message) {
		line = strings.TrimRight(line, " \t\r\n")
		c.log.Debug("banner", "line", line)
		if c.stderr != nil {
			c.stderr(line)
		}
	}
	return nil
}

// Describe implements Conn.
func (c *client) Describe() string { return ProgramBuiltin }

// Login implements Conn.
func (c *client) Login() Login { return c.login }

// RTT implements Conn.
func (c *client) RTT() time.Duration { return time.Duration(c.rtt.Load()) }

// sawRoundTrip notes a time in which something went there and back.
func (c *client) sawRoundTrip(d time.Duration) {
	for {
		old := c.rtt.Load()
		if old != 0 && old <= int64(d) || c.rtt.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}

// measure takes some more round trips: on a busy machine an answer may wait for its turn
// longer than it is on its way.
func (c *client) measure() {
	const enough, many = time.Millisecond, 4
	for range many {
		if c.RTT() > enough {
			c.ping()
		}
	}
}

// Authenticated implements Conn.
func (c *client) Authenticated() time.Time { return c.authenticated }

// Close implements Conn.
func (c *client) Close() error {
	c.stop()
	c.fail(net.ErrClosed)
	<-c.dead
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.tasks.Wait()
	if c.via != nil {
		c.via.Close()
	}
	return nil
}

func (c *client) cipher() string {
	if conn, ok := c.conn.Conn.(ssh.AlgorithmsConnMetadata); ok {
		return conn.Algorithms().Write.Cipher
	}
	return ""
}

// keepAlive asks the host for a sign of life whenever nothing came in for a while,
// and gives the connection up when nothing comes.
func (c *client) keepAlive() {
	ticker := time.NewTicker(c.config.aliveInterval)
	defer ticker.Stop()
	silent, last := 0, c.link.received.Load()
	for {
		select {
		case <-c.dead:
			return
		case <-ticker.C:
		}
		if now := c.link.received.Load(); now != last {
			silent, last = 0, now
			continue
		}
		if silent >= c.config.aliveCount {
			c.fail(fmt.Errorf("no answer for %v", c.config.aliveInterval*time.Duration(silent+1)))
			return
		}
		if silent == 0 {
			// One is enough: TCP repeats it.
			c.spawn(c.ping)
		}
		silent++
	}
}

func (c *client) ping() {
	start := time.Now()
	if _, _, err := c.conn.SendRequest("keepalive@openssh.com", true, nil); err == nil {
		c.sawRoundTrip(time.Since(start))
	}
}

// cipherOrder prefers AES-GCM where the processor has instructions for it, unless the
// user chose the order.
func cipherOrder(c *hostConfig) []string {
	if !c.anyCipherOrder {
		return c.ciphers
	}
	first := []string{ssh.CipherChaCha20Poly1305}
	if hasAES() {
		first = []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM}
	}
	return inFront(c.ciphers, first)
}

// inFront moves those of list that are in first to the front.
func inFront(list, first []string) []string {
	var front, rest []string
	for _, name := range first {
		if slices.Contains(list, name) {
			front = append(front, name)
		}
	}
	for _, name := range list {
		if !slices.Contains(front, name) {
			rest = append(rest, name)
		}
	}
	return append(front, rest...)
}

func hasAES() bool {
	return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ ||
		cpu.ARM64.HasAES && cpu.ARM64.HasPMULL ||
		cpu.S390X.HasAES && cpu.S390X.HasAESGCM
}

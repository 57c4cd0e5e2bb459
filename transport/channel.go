package transport

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// deathNews is how long the end of a channel waits for the end of its connection,
// which may be the reason for it.
const deathNews = 100 * time.Millisecond

// A host tells of a session's end a little before it has room for the next.
const (
	roomNews  = 20 * time.Millisecond
	roomWaits = 25 * roomNews
)

// endedLately reports whether a session has ended just now.
func (c *client) endedLately() bool {
	return time.Since(time.Unix(0, c.sessionEnded.Load())) < roomWaits
}

// killGrace is how long a command has to end when it is told to, before it is made to.
const killGrace = 300 * time.Millisecond

// A channel is a command on a connection of the built-in client.
type channel struct {
	ssh.Channel
	client   *client
	command  string
	requests <-chan *ssh.Request
	stderr   *stderrLog
	said     chan struct{} // closed when stderr is read to its end
	gone     chan struct{} // closed when the host has closed the channel
}

// An opening is a channel that the host has been asked for.
type opening struct {
	channel  ssh.Channel
	requests <-chan *ssh.Request
	err      error
	done     chan struct{} // closed when the host has answered
}

// open asks for a channel and does not wait.
func (c *client) open() *opening {
	o := &opening{done: make(chan struct{})}
	start := time.Now()
	c.spawn(func() {
		defer close(o.done)
		if o.channel, o.requests, o.err = c.conn.OpenChannel("session", nil); o.err == nil {
			c.sawRoundTrip(time.Since(start))
		}
	})
	return o
}

// Reserve implements Conn.
func (c *client) Reserve(n int) {
	for range n {
		o := c.open()
		c.mu.Lock()
		c.spare = append(c.spare, o)
		c.mu.Unlock()
	}
}

// takeSpare returns the channel that was reserved first, or nil.
func (c *client) takeSpare() *opening {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spare) == 0 {
		return nil
	}
	o := c.spare[0]
	c.spare = c.spare[1:]
	return o
}

// Start implements Conn. It costs the round trip in which the host opens a channel,
// unless one was reserved.
func (c *client) Start(ctx context.Context, command string) (*Session, error) {
	return c.request(ctx, "exec", command)
}

// Subsystem implements Conn.
func (c *client) Subsystem(ctx context.Context, name string) (*Session, error) {
	return c.request(ctx, "subsystem", name)
}

// request starts what the kind of request (of RFC 4254, section 6.5) and its only
// argument say, on a channel of its own.
func (c *client) request(ctx context.Context, kind, argument string) (*Session, error) {
	for {
		o := c.takeSpare()
		reserved := o != nil
		if !reserved {
			o = c.open()
		}
		select {
		case <-o.done:
		case <-ctx.Done():
			c.giveUp(o)
			return nil, context.Cause(ctx)
		}
		if o.err == nil {
			return c.run(ctx, o, kind, argument)
		}
		err := c.startError(o.err)
		// Openings are answered in any order: another may have been granted.
		if !errors.Is(err, ErrSessionRefused) || !reserved && !c.endedLately() {
			return nil, err
		}
		if !reserved {
			time.Sleep(roomNews)
		}
	}
}

// giveUp closes a channel that nobody waits for any more.
func (c *client) giveUp(o *opening) {
	c.spawn(func() {
		if <-o.done; o.err == nil {
			o.channel.Close()
			ssh.DiscardRequests(o.requests)
		}
	})
}

func (c *client) startError(err error) error {
	refused, ok := errors.AsType[*ssh.OpenChannelError](err)
	if ok {
		return fmt.Errorf("%w by %s: %s (%s)", ErrSessionRefused, c.address, refused.Message, refused.Reason)
	}
	return c.lost(err)
}

// lost returns why the connection is gone, and err if it is not.
func (c *client) lost(err error) error {
	timer := time.NewTimer(deathNews)
	defer timer.Stop()
	select {
	case <-c.dead:
		return c.err
	case <-timer.C:
		return err
	}
}

// run starts a command or subsystem on an open channel.
func (c *client) run(ctx context.Context, o *opening, kind, argument string) (*Session, error) {
	ch := o.channel
	p := &channel{
		Channel:  ch,
		client:   c,
		command:  argument,
		requests: o.requests,
		stderr:   &stderrLog{line: c.stderr, log: c.log},
		said:     make(chan struct{}),
		gone:     make(chan struct{}),
	}
	c.spawn(func() {
		defer close(p.said)
		p.stderr.collect(ch.Stderr())
	})
	// The session's context is watched from here on, also while a reply is awaited.
	s := newSession(ctx, p)
	s.login = c.login
	for _, pair := range c.config.environ {
		name, value, _ := strings.Cut(pair, "=")
		ch.SendRequest("env", false, ssh.Marshal(struct{ Name, Value string }{name, value}))
	}
	wait := kind != "exec" || !c.startsAtOnce()
	ok, err := ch.SendRequest(kind, wait, ssh.Marshal(struct{ Argument string }{argument}))
	if err == nil && (ok || !wait) {
		return s, nil
	}
	ch.Close()
	exit := s.Close()
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err == nil && kind != "exec":
		return nil, fmt.Errorf("%s has no subsystem %s for this user", c.address, argument)
	case err == nil:
		return nil, fmt.Errorf("%s does not run commands for this user", c.address)
	case exit != nil:
		return nil, exit
	}
	return nil, c.lost(err)
}

// startsAtOnce reports whether the host is known to begin with the command whenever
// it is asked to. Of others the reply is awaited: without one, a refusal would leave
// us waiting for a command that never runs.
func (c *client) startsAtOnce() bool {
	version := string(c.conn.ServerVersion())
	return strings.HasPrefix(version, "SSH-2.0-OpenSSH") || strings.HasPrefix(version, "SSH-2.0-copy-closure")
}

// wait implements process.
func (p *channel) wait() error {
	exit := &ExitError{Command: p.command, Status: -1}
	reported := false
	for request := range p.requests {
		switch request.Type {
		case "exit-status":
			var status struct{ Status uint32 }
			if ssh.Unmarshal(request.Payload, &status) == nil {
				exit.Status, reported = int(status.Status), true
			}
		case "exit-signal":
			var signal struct {
				Signal     string
				CoreDumped bool
				Message    string
				Language   string
			}
			if ssh.Unmarshal(request.Payload, &signal) == nil {
				exit.Signal, reported = shorten(signal.Signal), true
			}
		}
		request.Reply(false, nil)
	}
	p.client.sessionEnded.Store(time.Now().UnixNano())
	close(p.gone)
	<-p.said
	exit.Stderr = p.stderr.text()
	switch {
	case !reported:
		return p.client.lost(exit)
	case exit.Status == 0:
		return nil
	}
	return exit
}

// interrupt has the host signal the command, and closes the channel if that is not
// enough: a host does not signal forced commands, but takes their input away. Any of
// it may block on a stuck link, until that is closed.
func (p *channel) interrupt() {
	p.client.spawn(func() {
		p.signal("TERM")
		timer := time.NewTimer(killGrace)
		defer timer.Stop()
		select {
		case <-p.gone:
			return
		case <-timer.C:
		}
		p.signal("KILL")
		p.Channel.Close()
	})
}

func (p *channel) signal(name string) {
	p.SendRequest("signal", false, ssh.Marshal(struct{ Name string }{name}))
}

// kill gives up the connection: a host that does not even confirm the end of a
// channel is not there any more.
func (p *channel) kill() {
	p.client.fail(errors.New("the host does not answer"))
}

func (p *channel) release() { p.Channel.Close() }

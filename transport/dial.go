package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// Values of Options.Program.
const (
	ProgramAuto    = "auto"
	ProgramBuiltin = "builtin"
	ProgramOpenSSH = "openssh"
)

// Options say how to connect. The zero value is ready.
type Options struct {
	// Program forces the built-in client or the user's ssh program; empty or
	// ProgramAuto takes the built-in one wherever it can honour what is configured.
	Program string

	SSHOptions []string // words of ssh's command line, as ParseSSHOptions gives them
	Compress   bool     // compress the stream as ssh -C does, which only ssh does
	KeyFile    string   // one more private key, tried first
	HostKey    string   // the only accepted host key: base64 of "TYPE KEY", as in Nix's store parameter

	Prompter Prompter          // nil: nobody is there to be asked
	Logger   *slog.Logger      // nil discards
	Stderr   func(line string) // gets each line that a far command, the host or ssh has for the user; nil discards. Called by several sessions at once.
}

// A Conn is a connection to one host: one log-in, any number of sessions as far as the
// host allows. Its methods may be called at the same time.
type Conn interface {
	// Start runs a command line by the user's login shell there. It does not wait
	// for the command to run: the session may be written to at once. An error for
	// which errors.Is says ErrSessionRefused leaves the connection as it was; with
	// the ssh program it comes from the session's methods instead.
	Start(ctx context.Context, command string) (*Session, error)

	// Subsystem is Start for a service that the host knows by a name, such as sftp.
	Subsystem(ctx context.Context, name string) (*Session, error)

	// Reserve opens n sessions ahead, without waiting, for as many calls of Start
	// that then cost no round trip. What the host refuses shows in Start.
	Reserve(n int)

	// Describe names the client, and why it was taken where the built-in one was not.
	Describe() string

	// Login tells how the host was reached.
	Login() Login

	// RTT is the shortest round trip seen; 0 if it is not known.
	RTT() time.Duration

	// Authenticated is when the host let the user in; zero if the user's own master
	// connection is used.
	Authenticated() time.Time

	// Close ends all sessions, and the connection.
	Close() error
}

// A Login says who was let in where. What the user's ssh program keeps to itself is
// empty.
type Login struct {
	Address string // host:port
	User    string
	HostKey string // its type and fingerprint
	Method  string // "key SHA256:… (FILE)", "password"

	// Verified says that the host proved to be the one meant: its key is known, vouched
	// for by a known authority, was confirmed by the person at the terminal, or was the
	// first one and is remembered. No secret may go to another host.
	Verified bool
}

// Dial connects to a host and logs in. The context governs the whole life of the
// connection, not only the dialing: when it is cancelled, the connection is closed
// and every session on it ends.
//
// Errors that say why the host was not reached are of type *ConnectError,
// *HostKeyError or *AuthError. One about the user's configuration is none of these.
func Dial(ctx context.Context, d Destination, o Options) (Conn, error) {
	return dial(ctx, d, o, false)
}

// dial is Dial, for a further connection where nobody shall have to do anything.
func dial(ctx context.Context, d Destination, o Options, further bool) (Conn, error) {
	if further {
		o.Prompter = nil
	}
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("host %q: %w", d.String(), err)
	}
	if _, err := parseFlags(o.SSHOptions); err != nil {
		return nil, err
	}
	o.Logger = orDiscard(o.Logger)
	dl := &dialer{
		Options:  o,
		resolver: newResolver(o.Logger),
		ring:     keyring{ask: o.Prompter, files: map[string]*keyFile{}},
		further:  further,
	}
	conn, err := dl.dial(ctx, d)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return conn, err
}

// A dialer makes one connection, by way of others where the configuration says so.
type dialer struct {
	Options
	resolver *resolver
	ring     keyring
	further  bool // one of several connections to a host
}

// A plan is a host as the built-in client would reach it.
type plan struct {
	config *hostConfig
	keys   *identities
	via    *plan  // the jump host before it; nil: none
	target bool   // it is the host that was asked for, not one on the way
	reason string // why only OpenSSH can do it; empty: we can
}

func (p *plan) close() {
	for ; p != nil; p = p.via {
		p.keys.close()
	}
}

func (d *dialer) dial(ctx context.Context, dest Destination) (Conn, error) {
	q := query{dest: dest, options: d.sshWords()}
	switch d.Program {
	case "", ProgramAuto, ProgramBuiltin:
	case ProgramOpenSSH:
		return d.dialOpenSSH(ctx, q, "it was asked for")
	default:
		return nil, fmt.Errorf("unknown ssh program %q: it is auto, builtin or openssh", d.Program)
	}
	p, err := d.plan(ctx, q, 0)
	if err != nil {
		return nil, err
	}
	defer p.close()
	switch {
	case p.reason == "":
		c, err := d.dialBuiltin(ctx, p)
		if nothingInCommon(err) && d.Program != ProgramBuiltin && d.resolver.program != "" {
			return d.dialOpenSSH(ctx, q, "the host has none of the algorithms that the built-in client may use")
		}
		if err != nil {
			return nil, err
		}
		return c, nil
	case d.Program == ProgramBuiltin:
		return nil, &UnsupportedError{Host: dest.String(), Setting: p.reason, Reason: "it was asked for"}
	case d.resolver.program == "":
		return nil, &UnsupportedError{Host: dest.String(), Setting: p.reason, Reason: "OpenSSH's ssh, which can, is not installed"}
	}
	return d.dialOpenSSH(ctx, q, p.reason)
}

func nothingInCommon(err error) bool {
	_, ok := errors.AsType[*ssh.AlgorithmNegotiationError](err)
	return ok
}

// sshWords returns the command line options that stand for what the caller asked for.
func (d *dialer) sshWords() []string {
	var words []string
	if d.KeyFile != "" {
		words = append(words, "-i", d.KeyFile)
	}
	if d.Compress {
		words = append(words, "-C")
	}
	if d.further {
		words = append(words, furtherWords...) // the first value of a setting counts
	}
	return append(words, d.SSHOptions...)
}

// furtherWords have ssh make a connection of its own, and take no key that somebody
// would have to touch.
var furtherWords = []string{"-oControlPath=none", "-oPubkeyAcceptedKeyTypes=-sk-*"}

// maxJumps is how many hosts may be on the way.
const maxJumps = 8

// plan finds out what the configuration means, without touching the network.
func (d *dialer) plan(ctx context.Context, q query, depth int) (*plan, error) {
	if depth > maxJumps {
		return nil, fmt.Errorf("more than %d jump hosts on the way to %s", maxJumps, q.dest)
	}
	s, defaults, err := d.resolver.resolve(ctx, q)
	if err != nil {
		return nil, err
	}
	p := &plan{keys: &identities{}, target: depth == 0}
	if p.config, p.reason, err = newHostConfig(q.dest.Host, s, defaults); err != nil {
		return nil, fmt.Errorf("ssh configuration of %s: %w", q.dest.Host, err)
	}
	if p.reason == "" {
		p.reason = d.resolver.reasonForOpenSSH(ctx, q, s)
	}
	if p.reason != "" {
		return p, nil
	}
	ring := &d.ring
	if p.config.batch || p.config.prompts == 0 {
		ring = &keyring{files: map[string]*keyFile{}}
	}
	p.keys = findIdentities(ctx, p.config, ring, d.Logger)
	if d.further {
		p.keys.dropSecurityKeys()
	}
	if p.reason = p.keys.reason; p.reason != "" || len(p.config.jumps) == 0 {
		return p, nil
	}
	if p.via, err = d.planJump(ctx, q, p.config, depth); err != nil {
		p.close()
		return nil, err
	}
	if p.via != nil && p.via.reason != "" {
		p.reason = fmt.Sprintf("jump host %s: %s", p.via.config.alias, p.via.reason)
	}
	return p, nil
}

// planJump plans the way to the last of the jump hosts, which leads over the others
// or as its own configuration says. A hop inherits nothing but the file of the
// configuration, as with ssh -J. It returns nil if the host would jump over itself.
func (d *dialer) planJump(ctx context.Context, q query, c *hostConfig, depth int) (*plan, error) {
	last := len(c.jumps) - 1
	hop, err := ParseDestination(c.jumps[last])
	if err != nil {
		return nil, fmt.Errorf("jump: %w", err)
	}
	if hop.Host == q.dest.Host && (hop.Port == 0 || hop.Port == c.port) && (hop.User == "" || hop.User == c.user) {
		return nil, nil
	}
	next := query{dest: hop, options: configFile(q.options)}
	if last > 0 {
		next.options = append(next.options, "-J", strings.Join(c.jumps[:last], ","))
	}
	return d.plan(ctx, next, depth+1)
}

package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// socketMax is how long the path of a control socket may be: less than the 104 bytes
// that some systems have for it, as ssh first makes it under a longer name.
const socketMax = 80

// An sshProgram is a connection held by the user's ssh program: a master that logs in
// once, and a process for each session on it.
type sshProgram struct {
	program string
	argv    []string // of a session, without program, host and command
	host    string
	login   Login
	reason  string
	dir     string        // for the control socket
	master  *Session      // nil: the user's own is used
	output  chan struct{} // closed when what the master prints is read to its end
	o       Options
	stop    func() bool // of the context's watch

	authenticated time.Time

	mu       sync.Mutex
	closed   bool
	sessions []*Session
}

// dialOpenSSH logs in by the user's ssh program.
func (d *dialer) dialOpenSSH(ctx context.Context, q query, reason string) (Conn, error) {
	if d.resolver.program == "" {
		return nil, errors.New("OpenSSH's ssh is not installed")
	}
	s, defaults, err := d.resolver.resolve(ctx, q)
	if err != nil {
		return nil, err
	}
	p := &sshProgram{
		program: d.resolver.program,
		host:    q.dest.Host,
		login:   Login{Address: net.JoinHostPort(strings.Trim(s.first("hostname"), "[]"), s.first("port")), User: s.first("user")},
		reason:  reason,
		o:       d.Options,
	}
	if err := p.makeDir(); err != nil {
		return nil, err
	}
	common, err := p.options(q, s, defaults)
	if err == nil && d.resolver.liveMaster(ctx, q, s) {
		p.argv = append([]string{"-oControlMaster=no"}, common...)
		if p.login.Verified = !p.lax(s); !p.login.Verified {
			p.argv = append(p.argv, nothingForwarded...)
		}
	} else if err == nil {
		p.argv = p.sessionOptions(s)
		err = p.logIn(ctx, s, common)
	}
	if err != nil {
		os.RemoveAll(p.dir)
		return nil, err
	}
	p.stop = context.AfterFunc(ctx, func() { p.Close() })
	return p, nil
}

func (p *sshProgram) makeDir() (err error) {
	if p.dir, err = os.MkdirTemp("", "copy-closure-"); err == nil && len(p.socket()) > socketMax {
		os.Remove(p.dir)
		p.dir, err = os.MkdirTemp("/tmp", "copy-closure-")
	}
	if err != nil {
		return fmt.Errorf("directory for the ssh program's socket: %w", err)
	}
	return nil
}

func (p *sshProgram) socket() string { return filepath.Join(p.dir, "ssh") }

// options are those of an ssh that logs in to the host. Ours come before the user's:
// in ssh the first value of a setting counts.
func (p *sshProgram) options(q query, s, defaults settings) ([]string, error) {
	argv := append([]string{"-x", "-a", "-T"}, plainSession(s)...)
	if p.o.HostKey != "" {
		pinned, err := p.pin(s)
		if err != nil {
			return nil, err
		}
		argv = append(argv, pinned...)
	}
	argv = append(argv, "-oRemoteCommand=none", "-oClearAllForwardings=yes")
	if p.o.Prompter == nil {
		argv = append(argv, "-oBatchMode=yes")
	}
	argv = append(argv, q.argv()...)
	if ciphers := s.first("ciphers"); ciphers != "" && ciphers == defaults.first("ciphers") && hasAES() {
		gcm := []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM}
		argv = append(argv, "-oCiphers="+strings.Join(inFront(strings.Split(ciphers, ","), gcm), ","))
	}
	return argv, nil
}

// pin returns the options that make ssh accept the host key of the store parameters,
// and no other.
func (p *sshProgram) pin(s settings) ([]string, error) {
	line, err := decodeHostKey(p.o.HostKey)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(p.dir, "known_hosts")
	if err := os.WriteFile(file, []byte(knownHostsNameOf(s)+" "+string(line)+"\n"), 0o600); err != nil {
		return nil, err
	}
	argv := []string{"-oUserKnownHostsFile=" + strconv.Quote(file), "-oGlobalKnownHostsFile=none", "-oVerifyHostKeyDNS=no"}
	if !s.off("knownhostscommand") {
		argv = append(argv, "-oKnownHostsCommand=none")
	}
	return append(argv, checkedWords...), nil
}

// checkedWords have ssh refuse a host whose key is not known.
var checkedWords = []string{"-oStrictHostKeyChecking=yes", "-oNoHostAuthenticationForLocalhost=no"}

// nothingForwarded takes back what options of the user would give to the host: his
// agent, his display, his Kerberos ticket.
var nothingForwarded = []string{"-a", "-x", "-k"}

// plainSession undoes settings that would have ssh do something else, or do it in the
// background.
func plainSession(s settings) []string {
	var words []string
	for _, w := range []struct{ name, value string }{{"SessionType", "default"}, {"StdinNull", "no"}, {"ForkAfterAuthentication", "no"}} {
		if value := s.first(strings.ToLower(w.name)); value != "" && value != w.value { // an old ssh does not know it
			words = append(words, "-o"+w.name+"="+w.value)
		}
	}
	return words
}

// lax reports whether ssh lets hosts in whose keys it has not verified.
func (p *sshProgram) lax(s settings) bool {
	if p.o.HostKey != "" {
		return false
	}
	strict := strictness(s.first("stricthostkeychecking"))
	return unchecked(strict, words(s.first("userknownhostsfile"))) || !s.off("nohostauthenticationforlocalhost")
}

// logIn starts the master. Where the configuration lets unverified hosts in, only a
// first attempt that does not can tell that the host is verified. The second one gives
// no secret away.
func (p *sshProgram) logIn(ctx context.Context, s settings, options []string) error {
	p.login.Verified = true
	if !p.lax(s) {
		return p.startMaster(ctx, options, p.o.Stderr)
	}
	var said heldLines
	err := p.startMaster(ctx, slices.Concat(checkedWords, options), said.add)
	_, badKey := errors.AsType[*HostKeyError](err)
	_, unexplained := errors.AsType[*ExitError](err)
	if !badKey && !unexplained {
		said.release(p.o.Stderr)
		return err
	}
	p.login.Verified = false
	words := []string{"-oPasswordAuthentication=no", "-oKbdInteractiveAuthentication=no"}
	return p.startMaster(ctx, slices.Concat(words, options, nothingForwarded), p.o.Stderr)
}

// heldLines keeps lines until it is known whether anybody shall see them.
type heldLines struct {
	mu    sync.Mutex
	lines []string
	to    func(string) // nil: not known yet
}

func (h *heldLines) add(line string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.to == nil {
		h.lines = append(h.lines, line)
		return
	}
	h.to(line)
}

// release hands the lines on. A nil function discards them.
func (h *heldLines) release(to func(string)) {
	if to == nil {
		to = func(string) {}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, line := range h.lines {
		to(line)
	}
	h.lines, h.to = nil, to
}

// knownHostsNameOf is what ssh looks up in known_hosts.
func knownHostsNameOf(s settings) string {
	if alias := s.first("hostkeyalias"); alias != "" {
		return alias
	}
	port, err := parsePort(s.first("port"))
	if err != nil {
		port = defaultPort
	}
	return knownHostsName(strings.Trim(s.first("hostname"), "[]"), port)
}

// sessionOptions are those of an ssh that uses our master, and only that: should the
// master refuse a session, ssh would log in once more, which the command false as
// its way to the host prevents.
func (p *sshProgram) sessionOptions(s settings) []string {
	argv := []string{"-F", "none", "-S", p.socket(), "-oControlMaster=no", "-oProxyCommand=false", "-oBatchMode=yes", "-x", "-a", "-T"}
	for _, pair := range s["setenv"] {
		argv = append(argv, "-oSetEnv="+strconv.Quote(pair))
	}
	for _, pattern := range s["sendenv"] {
		argv = append(argv, "-oSendEnv="+pattern)
	}
	return argv
}

// startMaster starts an ssh that logs in and waits, and returns when it is logged in.
// As ssh asks for passwords at the terminal by itself, it stays in our process group
// where somebody is there. The first of all options wins, but the last -S.
func (p *sshProgram) startMaster(ctx context.Context, options []string, stderr func(string)) error {
	argv := slices.Concat([]string{p.program, "-N", "-oControlMaster=yes", "-oControlPersist=no"},
		options, []string{"-S", p.socket(), "--", p.host})
	child, err := startLocal(localSpec{
		argv:     argv,
		name:     "ssh " + p.host,
		ownGroup: p.o.Prompter == nil,
		stderr:   stderr,
		log:      p.o.Logger,
		explain:  p.explain,
	})
	if err != nil {
		return err
	}
	p.master, p.output = newSession(ctx, child), make(chan struct{})
	go func() { // the user's LocalCommand may print something
		defer close(p.output)
		(&stderrLog{line: stderr, log: p.o.Logger}).collect(p.master)
	}()
	if err := p.awaitMaster(); err != nil {
		p.closeMaster()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	p.authenticated = time.Now()
	p.o.Logger.Debug("authenticated", "host", p.login.Address, "user", p.login.User, "client", ProgramOpenSSH)
	return nil
}

// masterPoll is how often the master's socket is looked for.
const masterPoll = 2 * time.Millisecond

// awaitMaster waits until the master listens, which it does as soon as it is logged in
// and before it runs a LocalCommand.
func (p *sshProgram) awaitMaster() error {
	ticker := time.NewTicker(masterPoll)
	defer ticker.Stop()
	for {
		if _, err := os.Stat(p.socket()); err == nil {
			return nil
		}
		select {
		case <-p.master.ended:
			return cmp.Or(p.master.exit, errors.New("ssh ended before it was logged in"))
		case <-ticker.C:
		}
	}
}

func (p *sshProgram) closeMaster() {
	p.master.abort(net.ErrClosed)
	p.master.Close()
	<-p.output
}

// Start implements Conn.
func (p *sshProgram) Start(ctx context.Context, command string) (*Session, error) {
	return p.session(ctx, command)
}

// Subsystem implements Conn.
func (p *sshProgram) Subsystem(ctx context.Context, name string) (*Session, error) {
	return p.session(ctx, name, "-s")
}

// session starts an ssh for one session.
func (p *sshProgram) session(ctx context.Context, command string, options ...string) (*Session, error) {
	argv := slices.Concat([]string{p.program}, options, p.argv, []string{"--", p.host, command})
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, &LostError{Address: p.login.Address, Err: net.ErrClosed}
	}
	child, err := startLocal(localSpec{
		argv:     argv,
		name:     command,
		ownGroup: p.o.Prompter == nil || p.master != nil,
		stderr:   p.o.Stderr,
		log:      p.o.Logger,
		explain:  p.explainSession,
	})
	if err != nil {
		return nil, err
	}
	s := newSession(ctx, child)
	s.login = p.login
	p.sessions = append(slices.DeleteFunc(p.sessions, (*Session).over), s)
	return s, nil
}

// over reports whether the command has ended.
func (s *Session) over() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// Describe implements Conn.
func (p *sshProgram) Describe() string { return "openssh, because " + p.reason }

// Login implements Conn.
func (p *sshProgram) Login() Login { return p.login }

// RTT implements Conn.
func (p *sshProgram) RTT() time.Duration { return 0 }

// Reserve implements Conn. The ssh program opens a session only with its command.
func (p *sshProgram) Reserve(int) {}

// Authenticated implements Conn.
func (p *sshProgram) Authenticated() time.Time { return p.authenticated }

// Close implements Conn.
func (p *sshProgram) Close() error {
	if p.stop != nil {
		p.stop()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var ending sync.WaitGroup
	for _, s := range p.sessions {
		ending.Go(func() { s.abort(net.ErrClosed) })
	}
	ending.Wait()
	if p.master != nil {
		p.closeMaster()
	}
	return os.RemoveAll(p.dir)
}

// explainSession makes of the end of a session's ssh what it means. An exit status
// 255 may be the command's own as well as ssh's.
func (p *sshProgram) explainSession(exit *ExitError) error {
	if exit.Status != sshFailed {
		return exit
	}
	if strings.Contains(exit.Stderr, "Session open refused by peer") {
		return fmt.Errorf("%w by %s: %s", ErrSessionRefused, p.login.Address, lastLine(exit.Stderr))
	}
	if p.master != nil && p.master.endsWithin(deathNews) {
		err := p.master.exit
		if err == nil {
			err = exit
		}
		return &LostError{Address: p.login.Address, Err: err}
	}
	return p.explain(exit)
}

// sshFailed is the exit status of an ssh that failed by itself.
const sshFailed = 255

// explain recognises ssh's own errors by what it prints.
func (p *sshProgram) explain(exit *ExitError) error {
	if exit.Status != sshFailed {
		return exit
	}
	text := exit.Stderr
	last := errors.New(lastLine(text))
	switch {
	case strings.Contains(text, "Permission denied ("), strings.Contains(text, "Too many authentication failures"):
		e := &AuthError{User: p.login.User, Address: p.login.Address, Tried: []string{"all that ssh is configured for"}, Offered: between(text, "Permission denied (", ")"), Err: last}
		if !p.login.Verified {
			e.Notes = []string{(&UnverifiedHostError{Host: p.login.Address}).Error()}
		}
		return e
	case strings.Contains(text, "HOST IDENTIFICATION HAS CHANGED"):
		return p.hostKeyError(HostKeyChanged, text, last)
	case strings.Contains(text, "marked as revoked"), strings.Contains(text, "REVOKED HOST KEY"):
		return p.hostKeyError(HostKeyRevoked, text, last)
	case strings.Contains(text, "Host key verification failed"):
		return p.hostKeyError(HostKeyUnknown, text, last)
	}
	if p.authenticated.IsZero() {
		for _, sign := range connectFailures {
			if strings.Contains(text, sign) {
				return &ConnectError{Address: p.login.Address, Err: last}
			}
		}
	} else if strings.Contains(text, "closed by remote host") || strings.Contains(text, "not responding") || strings.Contains(text, "Connection reset") {
		return &LostError{Address: p.login.Address, Err: last}
	}
	return exit
}

// connectFailures are the words by which ssh says that it did not get through.
var connectFailures = []string{
	"ssh: connect to host", "Could not resolve hostname", "Connection timed out", "Connection refused",
	"Connection reset", "Connection closed by", "kex_exchange_identification", "banner exchange",
	"Unable to negotiate", "No route to host", "stdio forwarding failed",
}

// hostKeyError takes from ssh's text what it tells about the key.
func (p *sshProgram) hostKeyError(problem HostKeyProblem, text string, last error) error {
	e := &HostKeyError{Problem: problem, Host: p.login.Address, Err: last}
	if host, port, err := net.SplitHostPort(p.login.Address); err == nil {
		if n, err := parsePort(port); err == nil {
			e.Host = knownHostsName(host, n)
		}
	}
	fields := strings.Fields(text)
	for i, word := range fields {
		switch {
		case strings.HasPrefix(word, "SHA256:"):
			e.Fingerprint = strings.TrimRight(word, ".")
		case word == "key" && i > 0 && e.KeyType == "" && fields[i-1] == strings.ToUpper(fields[i-1]):
			e.KeyType = fields[i-1]
		case word == "Offending" && i+4 < len(fields):
			if file, line, ok := strings.Cut(fields[i+4], ":"); ok && fields[i+2] == "key" {
				e.File = file
				e.Line, _ = strconv.Atoi(line)
			}
		}
	}
	return e
}

// between returns the parts of a comma separated list in text.
func between(text, before, after string) []string {
	_, rest, _ := strings.Cut(text, before)
	list, _, ok := strings.Cut(rest, after)
	if !ok {
		return nil
	}
	return strings.Split(list, ",")
}

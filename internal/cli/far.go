package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/show"
	"github.com/copy-closure/copy-closure/remote"
	"github.com/copy-closure/copy-closure/transport"
)

// A farEnd is the store at the other end of a copy.
type farEnd struct {
	protocolStore
	side *remote.Store // beside a daemon, answers for whole closures; nil: there is none
	peer *remote.Peer  // nil while, or where, only Nix's protocols are spoken
	host *hostURI
	farHost
	end   remote.FarEnd
	empty bool // a dry run found no program there
	execs int  // round trips of further commands

	bootstrapped, sudoTried bool // what mend has done

	further []*remote.Store // sessions beside those of the copy
}

// connect logs in and starts the far end; its first answer is not waited for.
func (r *copyRun) connect(ctx context.Context) (*farEnd, error) {
	words, err := r.clientOptions()
	if err != nil {
		return nil, err
	}
	agents := r.findAgents()
	conn, err := transport.DialTrunk(ctx, r.host.destination, transport.Options{
		Program:    r.ssh,
		SSHOptions: words,
		Compress:   r.gzip,
		KeyFile:    r.host.keyFile,
		HostKey:    r.host.hostKey,
		Prompter:   r.prompter(),
		Logger:     r.log,
	})
	if err != nil {
		return nil, err
	}
	r.log.Info("logged in", "after", time.Since(r.started).Round(time.Millisecond))
	if !isNear(conn) {
		conn.Reserve(mostLanes)
	}
	far := &farEnd{host: r.host, farHost: farHost{conn, &r.traffic, r.become}}
	far.end = remote.FarEnd{
		Program: r.host.program,
		Store:   r.host.store,
		Access:  r.access(),
		Agents:  <-agents,
		Prefer:  r.bootstrap == bootstrapAlways,
	}
	if r.askSudo {
		err = r.askSudoPassword(ctx, far, "--ask-sudo-password")
	}
	if err == nil {
		err = r.openFar(ctx, far)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return far, nil
}

// openFar starts the program at the far end.
func (r *copyRun) openFar(ctx context.Context, far *farEnd) error {
	if r.host.worker {
		return r.openWorker(ctx, far, far.end, r.farOptions(far))
	}
	store, err := remote.Open(ctx, far.farHost, far.end, r.farOptions(far))
	if err == nil {
		far.protocolStore = store
	}
	return err
}

func (r *copyRun) farOptions(far *farEnd) remote.Options {
	return remote.Options{
		StoreDir: storeDir(),
		Spread:   spread(far.conn),
		Early:    r.connections <= 1, // further sessions are to be on further connections
		Logger:   r.log,
	}
}

// prompter asks the person at the terminal, if there is one.
func prompter() transport.Prompter {
	if !transport.HaveTerminal() {
		return nil
	}
	return &transport.TerminalPrompter{Show: show.Indented}
}

// access is the least that the copy needs.
func (r *copyRun) access() remote.Access {
	switch {
	case r.terms.DryRun:
		return remote.Look
	case r.pull:
		return remote.Read
	}
	return remote.Write
}

// farHost lets remote start programs over a connection, as the user who is wanted.
type farHost struct {
	conn    *transport.Trunk
	traffic *traffic
	become
}

// Traffic counts the bytes of all sessions of a copy, before SSH adds its own.
type traffic struct{ sent, received atomic.Int64 }

func (h farHost) Start(ctx context.Context, command string) (io.ReadWriteCloser, error) {
	return startAbortable(ctx, h.traffic, func(ctx context.Context) (*transport.Session, error) {
		return h.start(ctx, command)
	})
}

// StartFurther implements remote.WideHost.
func (h farHost) StartFurther(ctx context.Context, command string) (io.ReadWriteCloser, error) {
	return startAbortable(ctx, h.traffic, func(ctx context.Context) (*transport.Session, error) {
		return h.asUser(ctx, h.conn.StartFurther, command)
	})
}

// start is conn.Start as that user.
func (h farHost) start(ctx context.Context, command string) (*transport.Session, error) {
	return h.asUser(ctx, h.conn.Start, command)
}

func (h farHost) asUser(ctx context.Context, start func(context.Context, string) (*transport.Session, error), command string) (*transport.Session, error) {
	session, err := start(ctx, h.wrap(command))
	if err != nil || h.password.IsZero() {
		return session, err
	}
	if err := session.WriteSecret(h.password); err != nil {
		return nil, errors.Join(err, session.Close())
	}
	return session, nil
}

// An abortableSession can be ended without waiting for its program.
type abortableSession struct {
	*transport.Session
	cancel  context.CancelCauseFunc
	traffic *traffic
}

// Read implements io.Reader.
func (s *abortableSession) Read(p []byte) (int, error) {
	n, err := s.Session.Read(p)
	s.traffic.received.Add(int64(n))
	return n, err
}

// Write implements io.Writer.
func (s *abortableSession) Write(p []byte) (int, error) {
	n, err := s.Session.Write(p)
	s.traffic.sent.Add(int64(n))
	return n, err
}

// errAborted is the cause of a session that we gave up.
var errAborted = errors.New("session given up")

// Abort ends the session at once.
func (s *abortableSession) Abort() { s.cancel(errAborted) }

// Close releases the session's context once its program has ended.
func (s *abortableSession) Close() error {
	defer s.cancel(errAborted)
	return withoutCommand(s.Session.Close())
}

// withoutCommand shortens the error of a far command to how it ended: the user has not
// typed the script that it ran.
func withoutCommand(err error) error {
	var exit *transport.ExitError
	if errors.As(err, &exit) {
		return &lastWords{exit}
	}
	return err
}

// lastWords tell how a far end went, without the long command that started it.
type lastWords struct{ exit *transport.ExitError }

func (e *lastWords) Error() string { return e.exit.Reason() }
func (e *lastWords) Unwrap() error { return e.exit }

func startAbortable(ctx context.Context, t *traffic, start func(context.Context) (*transport.Session, error)) (io.ReadWriteCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	session, err := start(ctx)
	if err != nil {
		cancel(err)
		return nil, err
	}
	return &abortableSession{session, cancel, t}, nil
}

// close ends the connection and with it all sessions, without waiting for the
// programs there to end: every answer was read, and their temporary roots go with
// them.
func (f *farEnd) close() {
	if f.peer != nil {
		f.peer.Close()
	}
	f.conn.Close()
	f.protocolStore.Close()
	if f.side != nil {
		f.side.Close()
	}
	for _, store := range f.further {
		store.Close()
	}
}

// roundTrips is how often the copy had to wait for the far end since the log-in:
// to open a session, for each answer, and for the last acknowledgement.
func (f *farEnd) roundTrips(sent bool) int {
	n := 1 + f.RoundTrips() + f.execs
	if f.side != nil {
		n += f.side.RoundTrips()
	}
	if sent {
		n++
	}
	return n
}

// clientOptions are words for ssh's command line.
func (p *program) clientOptions() ([]string, error) {
	if p.sshOptions != nil {
		return p.sshOptions, nil
	}
	options, err := transport.ParseSSHOptions(os.Getenv("NIX_SSHOPTS"))
	if err != nil {
		return nil, usagef("NIX_SSHOPTS: %v", err)
	}
	return options, nil
}

// Below nearby one channel carries what a core encrypts, and a second one keeps the
// other core busy. Farther away a channel's window of 2 MiB limits a transfer; eight
// channels stay below sshd's default MaxSessions of ten. e2e/bench measures it.
const (
	nearby    = 5 * time.Millisecond
	mostLanes = 8

	mostConnections = 16

	// Bytes for which a further lane pays. Each one to a real Nix is a process that
	// waits for the others' transactions.
	worthALaneThere = 4 << 20
	worthALaneHere  = 1 << 20
)

// isNear reports whether the host is known to be close by.
func isNear(conn transport.Conn) bool {
	rtt := conn.RTT()
	return rtt > 0 && rtt < nearby
}

// spread is the number of sessions for a long answer.
func spread(conn transport.Conn) int {
	if conn.RTT() < nearby {
		return 1
	}
	return mostLanes / 2
}

// lanesFor chooses the number of sessions for a plan, at least one for each of the
// connections where they pay.
func (f *farEnd) lanesFor(plan *closure.Plan, pull bool, connections int) int {
	most, worth := mostLanes, int64(worthALaneThere)
	if isNear(f.conn) {
		most = 2
	}
	most = max(most, connections)
	if pull {
		worth = worthALaneHere
	}
	return int(min(plan.SendBytes()/worth+1, int64(most)))
}

// output runs a command at the far end and returns what it printed.
func (f *farEnd) output(ctx context.Context, command string) (string, error) {
	f.execs += 2 // to open the session, and for the answer
	session, err := f.start(ctx, command)
	if err != nil {
		return "", err
	}
	if err := session.CloseWrite(); err != nil { // a forced command may be waiting for a client
		return "", errors.Join(err, session.Close())
	}
	const limit = 1 << 20
	text, err := io.ReadAll(io.LimitReader(session, limit))
	if err := withoutCommand(session.Close()); err != nil {
		return "", err
	}
	return string(text), err
}

// followScript prints where each path behind $1, the store directory, leads to. It
// looks at nothing in the store, as localstore.Resolve: there may be no /nix.
const followScript = `s=$1; shift
for f do
  d=""; t=$f; n=0
  while [ -n "$t" ]; do
    case $d/$t in "$s"/*) break;; esac
    c=${t%%/*}
    case $t in */*) t=${t#*/};; *) t="";; esac
    case $c in ""|.) continue;; ..) d=${d%/*}; continue;; esac
    if [ -L "$d/$c" ] && [ $n -lt 40 ]; then
      l=$(readlink "$d/$c") || exit 1
      n=$((n+1))
      case $l in /*) d=""; l=${l#/};; esac
      t=$l${t:+/$t}
    elif [ -e "$d/$c" ]; then d=$d/$c
    else echo "$f: no such file or directory" >&2; exit 1; fi
  done
  echo "$d${t:+/$t}"
done`

// resolve finds the store paths that arguments of a pull mean: store paths and
// paths inside them as they stand; relative ones through the links of this
// machine, as ./result; other absolute ones through the links over there.
func (f *farEnd) resolve(ctx context.Context, args []string, local *localEnd) ([]nix.StorePath, error) {
	dir := storeDir()
	roots := make([]nix.StorePath, len(args))
	var links []string
	var linkIndex []int
	for i, arg := range args {
		var err error
		switch {
		case strings.HasPrefix(arg, string(dir)+"/"):
			roots[i], _, err = dir.Split(arg)
		case !strings.HasPrefix(arg, "/"):
			roots[i], err = local.resolveLink(ctx, arg)
		default:
			links, linkIndex = append(links, arg), append(linkIndex, i)
		}
		if err != nil {
			return nil, usagef("%v", err)
		}
	}
	if len(links) == 0 {
		return roots, nil
	}
	text, err := f.output(ctx, remote.Command(followScript, append([]string{string(dir)}, links...)...))
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if err == nil && len(lines) != len(links) {
		err = fmt.Errorf("the shell there answered with %d lines", len(lines))
	}
	if err != nil {
		return nil, fmt.Errorf("resolve %s there: %w", strings.Join(links, " "), err)
	}
	for i, line := range lines {
		if roots[linkIndex[i]], _, err = dir.Split(line); err != nil {
			return nil, &notInSourceError{fmt.Errorf("%s there: %w: %w", links[i], err, nix.ErrNotValid)}
		}
	}
	return roots, nil
}

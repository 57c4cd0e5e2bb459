package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/ui"
	"github.com/copy-closure/copy-closure/remote"
	"github.com/copy-closure/copy-closure/transport"
)

// look tells things in the order in which they can go wrong, and asks for them
// together where one question does not depend on the answer to another.
func (r *checkRun) look(ctx context.Context) error {
	defer r.asking.Wait()
	far, err := r.connect(ctx)
	if err != nil {
		return err
	}
	defer far.close()
	r.tellLogin(far.conn.Login(), far.conn.Describe())
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	planned := ask(r, func() (*closure.Plan, error) { return r.planPush(ctx, far) })
	visit, leave := context.WithCancel(ctx)
	defer leave()
	machine := ask(r, func() (*survey, error) { return far.survey(visit) })
	if err := far.Greet(ctx); err != nil {
		return err
	}
	r.find("far end", "%s", far.Describe())
	if room := far.Room(); room != nil {
		place := "the store"
		if room.FileSystem != "" {
			place += " (" + room.FileSystem + ")"
		}
		r.find("room", "%s and %s files free for %s", ui.Bytes(room.Bytes), ui.Count(int(room.Files)), place)
	}
	forced := far.Forced()
	if forced {
		leave() // what was asked for is not what runs
	}
	plan, planErr := planned()
	trust, err := far.Trust(ctx) // an old daemon may hang up then: it is the last question
	if err != nil && planErr == nil {
		return err
	}
	found, err := machine()
	switch {
	case forced:
		r.find("trust", "a forced command runs for this key and decides what it takes")
	case errors.Is(err, transport.ErrSessionRefused):
		r.find("machine", "not known: the host allows one session only")
	case err != nil:
		return err
	default:
		r.tellMachine(found, far, trust)
	}
	if planErr != nil || plan == nil {
		return planErr
	}
	r.find("push", "%s", planSummary(plan, "push", r.there()))
	if err := r.checkRoom(ctx, plan, ends{far: far}); err != nil {
		return err
	}
	return refuseUntrusted(trust, r.daemonPlace(), unvouched(plan.Send))
}

// ask runs a question beside the caller, who gets its answer from what is returned.
func ask[T any](r *checkRun, question func() (T, error)) func() (T, error) {
	var answer T
	var err error
	done := make(chan struct{})
	r.asking.Go(func() {
		defer close(done)
		answer, err = question()
	})
	return func() (T, error) {
		<-done
		return answer, err
	}
}

func (r *checkRun) tellLogin(login transport.Login, client string) {
	r.find("host", "%s, reached at %s by %s", r.host.name, login.Address, client)
	switch {
	case !login.Verified:
		r.find("host key", "not verified: %s", cmp.Or(login.HostKey, "ssh let it through"))
	case login.HostKey != "":
		r.find("host key", "%s, known", login.HostKey)
	}
	how := ""
	if login.Method != "" {
		how = " by " + login.Method
	}
	r.find("login", "%s%s, after %s", login.User, how, ui.Seconds(time.Since(r.started)))
}

// surveyScript tells about the machine and the programs there, a line each, and then
// takes whatever it is sent. $1 is the store that was named. Without NIX_REMOTE, root's
// nix-store would create /nix.
const surveyScript = `uname -sm; id -un; NIX_REMOTE=daemon nix-store --version 2>/dev/null || echo no Nix; copy-closure --version 2>/dev/null || echo no copy-closure
if [ -n "$1" ]; then echo "$1"; elif [ -n "$NIX_REMOTE" ] && [ "$NIX_REMOTE" != auto ]; then echo "$NIX_REMOTE"; elif command -v nix-store >/dev/null || [ -e /nix/var/nix/db/db.sqlite ]; then echo /nix/store; else echo "${XDG_DATA_HOME:-$HOME/.local/share}/copy-closure/nix/store"; fi
if [ -w /nix/var/nix/db ]; then echo writable; elif [ -S /nix/var/nix/daemon-socket/socket ]; then echo daemon; else echo no; fi; echo "` + surveyMark + `"; exec cat >/dev/null`

const surveyLines = 6

const (
	surveyMark = "@copy-closure-survey"

	// probeBytes are enough to see how fast a link is, and no burden for a slow one.
	probeBytes = 2 << 20
)

// A survey is what no protocol tells.
type survey struct {
	system, user, nix, ours string
	store                   string
	write                   string // who writes it: writable, daemon or no
	rate                    int64  // bytes a second, at least
}

func (f *farEnd) survey(ctx context.Context) (*survey, error) {
	session, err := f.start(ctx, remote.Command(surveyScript, f.host.store))
	if err != nil {
		return nil, err
	}
	found, err := readSurvey(session)
	if err == nil {
		found.rate, err = probe(session, f.conn.RTT())
	}
	return found, errors.Join(err, withoutCommand(session.Close()))
}

// readSurvey reads the script's lines, which may stand behind what the shell's start-up
// files print.
func readSurvey(session io.Reader) (*survey, error) {
	const limit = 1 << 20
	r := bufio.NewReader(io.LimitReader(session, limit))
	var lines []string
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return nil, fmt.Errorf("look at the machine there: %w", err)
		}
		if line = strings.TrimSuffix(line, "\n"); line == surveyMark {
			break
		}
		lines = append(lines, line)
	}
	if len(lines) < surveyLines {
		return nil, errors.New("look at the machine there: its shell leaves out what was asked")
	}
	lines = lines[len(lines)-surveyLines:]
	ours, _, _ := strings.Cut(lines[3], " (") // what follows are the protocols
	return &survey{system: lines[0], user: lines[1], nix: lines[2], ours: ours, store: lines[4], write: lines[5]}, nil
}

// probe sends something, and returns how many bytes a second went.
func probe(session *transport.Session, rtt time.Duration) (int64, error) {
	start := time.Now()
	_, err := session.Write(make([]byte, probeBytes))
	if err == nil {
		err = session.CloseWrite()
	}
	if err == nil {
		_, err = io.Copy(io.Discard, session)
	}
	took := max(time.Since(start)-rtt, time.Microsecond)
	return int64(probeBytes / took.Seconds()), err
}

// foreign is text of the far end as it stands, or quoted where it could be taken for
// something else.
func foreign(text string) string {
	odd := func(r rune) bool { return r < ' ' || r > '~' || r == '"' }
	if text == "" || strings.ContainsFunc(text, odd) {
		return strconv.Quote(text)
	}
	return text
}

func (r *checkRun) tellMachine(found *survey, far *farEnd, trust remote.Trust) {
	r.find("machine", "%s, user %s", foreign(found.system), foreign(found.user))
	r.find("programs", "%s, %s", foreign(found.nix), foreign(found.ours))
	r.find("store", "%s", foreign(found.store))
	r.find("trust", "%s", trustText(far, trust, found.write))
	rtt := "unknown"
	if d := far.conn.RTT(); d > 0 {
		rtt = d.Round(100 * time.Microsecond).String()
	}
	r.find("link", "round trip %s, at least %s/s there in one session", rtt, ui.Bytes(found.rate))
}

// trustText says whose word counts for paths without a trusted signature.
func trustText(far *farEnd, trust remote.Trust, write string) string {
	_, isDaemon := far.protocolStore.(*remote.Daemon)
	switch {
	case trust == remote.Trusted:
		return "the daemon trusts this user: unsigned paths are taken"
	case trust == remote.NotTrusted:
		return "the daemon does not trust this user: paths need a signature by one of its trusted-public-keys"
	case isDaemon:
		return "the daemon does not say whether it trusts this user"
	case write == "writable":
		return "this user may write the store: unsigned paths are taken"
	case write == "daemon":
		return "a daemon decides, and this protocol cannot ask it (ssh-ng:// can): paths may need a signature"
	case far.ours():
		return "copy-closure serves a store of this user: unsigned paths are taken"
	}
	return "this user may not write /nix/var/nix/db, and there is no daemon (--sudo may help)"
}

// planPush plans a push of the paths that were named; nil where there are none.
func (r *checkRun) planPush(ctx context.Context, far *farEnd) (*closure.Plan, error) {
	if len(r.args) == 0 {
		return nil, nil
	}
	local, err := r.openLocal(ctx, r.store, toLook)
	if err != nil {
		return nil, err
	}
	defer local.close()
	roots, err := local.resolve(ctx, r.args)
	if err != nil {
		return nil, err
	}
	all, err := r.walk(ctx, local.source, roots)
	if err != nil {
		return nil, &notInSourceError{err}
	}
	return closure.Negotiate(ctx, all, local.source, far.target(), r.terms)
}

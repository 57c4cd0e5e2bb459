package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/ui"
	"github.com/copy-closure/copy-closure/remote"
)

// checkCommand tells in one screen what a copy would find.
func (p *program) checkCommand() *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "print what a copy to or from a host would find there, and change nothing",
		Flags: copyFlags(),
		Action: func(c *cli.Context) error {
			if err := p.setOutput(c); err != nil {
				return err
			}
			request, err := p.copyRequest(c, false)
			if err != nil {
				return err
			}
			if request.pull {
				return usagef("check looks at a destination: say --to HOST")
			}
			request.terms.DryRun = true
			return (&checkRun{copyRun: copyRun{program: p, copyRequest: request, started: time.Now()}}).run(c.Context)
		},
	}
}

// A checkRun collects findings.
type checkRun struct {
	copyRun
	findings []finding
}

// A finding is a line of the screen, or a member of "findings" with --json.
type finding struct {
	Subject string `json:"subject"`
	Text    string `json:"text"`
}

func (r *checkRun) find(subject, format string, args ...any) {
	r.findings = append(r.findings, finding{subject, fmt.Sprintf(format, args...)})
}

// run looks as far as it gets, prints what it found, and returns what stopped it.
func (r *checkRun) run(ctx context.Context) error {
	err := r.look(ctx)
	if err != nil {
		// Errors say what happened, and behind the first semicolon what to do.
		what, remedy, _ := strings.Cut(err.Error(), "; ")
		r.find("problem", "%s", what)
		if remedy != "" {
			r.find("remedy", "%s", remedy)
		}
	}
	if printErr := r.print(); printErr != nil {
		return printErr
	}
	if err != nil {
		return &delegatedError{code: exitCode(err)} // it is told
	}
	return nil
}

func (r *checkRun) print() error {
	if r.json {
		return printJSON(r.stdout, map[string]any{"host": r.host.name, "findings": r.findings})
	}
	for _, f := range r.findings {
		lines := fold(f.Text, screenColumns-checkIndent)
		fmt.Fprintf(r.stdout, "%-*s%s\n", checkIndent, f.Subject, lines[0])
		for _, line := range lines[1:] {
			fmt.Fprintf(r.stdout, "%*s%s\n", checkIndent, "", line)
		}
	}
	return nil
}

const (
	screenColumns = 79
	checkIndent   = 10
)

// fold breaks text between words, where it can, into lines of no more than columns.
func fold(text string, columns int) []string {
	lines := []string{""}
	for _, word := range strings.Fields(text) {
		last := &lines[len(lines)-1]
		switch {
		case *last == "":
			*last = word
		case len([]rune(*last))+1+len([]rune(word)) <= columns:
			*last += " " + word
		default:
			lines = append(lines, word)
		}
	}
	return lines
}

// factsScript tells about the machine and the Nix there, a line each.
const factsScript = `uname -sm; id -un; nix-store --version 2>/dev/null || echo no Nix; if [ -w /nix/var/nix/db ]; then echo writable; elif [ -S /nix/var/nix/daemon-socket/socket ]; then echo daemon; else echo no; fi`

// look asks in the order in which things can go wrong.
func (r *checkRun) look(ctx context.Context) error {
	far, err := r.connect(ctx)
	if err != nil {
		return err
	}
	defer far.close()
	login := far.conn.Login()
	r.find("host", "%s, reached at %s by %s", r.host.name, login.Address, far.conn.Describe())
	if login.HostKey != "" {
		r.find("host key", "%s, known", login.HostKey)
	}
	how := ""
	if login.Method != "" {
		how = " by " + login.Method
	}
	r.find("login", "%s%s, after %s", login.User, how, ui.Seconds(time.Since(r.started)))
	if err := far.Greet(ctx); err != nil {
		return err
	}
	r.find("far end", "%s", far.Describe())
	if room := far.Room(); room != nil {
		r.find("room", "%s and %s files free for the store (%s)", ui.Bytes(room.Bytes), ui.Count(int(room.Files)), room.FileSystem)
	}
	if err := r.lookAtMachine(ctx, far); err != nil {
		return err
	}
	return r.lookAtPush(ctx, far)
}

// lookAtMachine asks what the protocol does not tell, and how fast the link is.
func (r *checkRun) lookAtMachine(ctx context.Context, far *farEnd) error {
	if far.Forced() && r.host.program == "" {
		r.find("trust", "a forced command runs for this key and decides what it takes")
		return nil
	}
	text, err := far.output(ctx, remote.Command(factsScript))
	if err != nil {
		return err
	}
	facts := strings.Split(strings.TrimSpace(text), "\n")
	if n := len(facts); n > 4 {
		facts = facts[n-4:] // behind what the shell's start-up files print
	}
	if len(facts) == 4 {
		r.find("machine", "%q, user %q, %q", facts[0], facts[1], facts[2])
		r.find("trust", "%s", r.trust(ctx, far, facts[3]))
	}
	return r.measure(ctx, far)
}

// trust says whose word counts for paths without a trusted signature.
func (r *checkRun) trust(ctx context.Context, far *farEnd, write string) string {
	if daemon, ok := far.protocolStore.(*remote.Daemon); ok {
		switch trust, err := daemon.Trust(ctx); {
		case err == nil && trust == remote.Trusted:
			return "the daemon trusts this user: unsigned paths are taken"
		case err == nil && trust == remote.NotTrusted:
			return "the daemon does not trust this user: paths need a signature by one of its trusted-public-keys"
		}
		return "the daemon does not say whether it trusts this user"
	}
	switch {
	case write == "writable":
		return "this user may write the store: unsigned paths are taken"
	case write == "daemon":
		return "a daemon decides, and this protocol cannot ask it (ssh-ng:// can): paths may need a signature"
	case far.ours():
		return "copy-closure serves a store of this user: unsigned paths are taken"
	}
	return "this user may not write /nix/var/nix/db, and there is no daemon (--sudo may help)"
}

// probeBytes are enough to see how fast a link is, and no burden for a slow one.
const probeBytes = 2 << 20

func (r *checkRun) measure(ctx context.Context, far *farEnd) error {
	rtt := "unknown"
	if d := far.conn.RTT(); d > 0 {
		rtt = d.Round(100 * time.Microsecond).String()
	}
	session, err := far.farHost.start(ctx, remote.Command("exec cat >/dev/null"))
	if err != nil {
		return err
	}
	start := time.Now()
	_, err = session.Write(make([]byte, probeBytes))
	if err == nil {
		err = session.CloseWrite()
	}
	if err == nil {
		_, err = io.Copy(io.Discard, session)
	}
	if err != nil {
		return err
	}
	rate := float64(probeBytes) / max(time.Since(start)-far.conn.RTT(), time.Microsecond).Seconds()
	r.find("link", "round trip %s, at least %s/s there in one session", rtt, ui.Bytes(int64(rate)))
	return session.Close()
}

// lookAtPush plans a push of the paths that were named.
func (r *checkRun) lookAtPush(ctx context.Context, far *farEnd) error {
	if len(r.args) == 0 {
		return nil
	}
	local, err := r.openLocal(ctx, r.store, toLook)
	if err != nil {
		return err
	}
	defer local.close()
	roots, err := local.resolve(ctx, r.args)
	if err != nil {
		return err
	}
	all, err := r.walk(ctx, local.source, roots)
	if err != nil {
		return &notInSourceError{err}
	}
	plan, err := closure.Negotiate(ctx, all, local.source, far.target(), r.terms)
	if err != nil {
		return err
	}
	r.find("push", "%s", planSummary(plan, "push", r.there()))
	if err := r.checkRoom(ctx, plan, ends{far: far, local: local}); err != nil {
		return err
	}
	if daemon, ok := far.protocolStore.(*remote.Daemon); ok {
		return checkDaemonTrust(ctx, daemon, r.daemonPlace(), plan.Send)
	}
	return nil
}

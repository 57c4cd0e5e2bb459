package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/copy-closure/copy-closure/remote"
	"github.com/copy-closure/copy-closure/transport"
)

// A become makes another user of the one who is logged in there.
type become struct {
	command  string           // the words before a program; empty: nothing
	password transport.Secret // of sudo, which reads it in front of everything else
}

const (
	sudoCommand = "sudo -n -H"
	// With -k sudo asks whether or not it remembers, so that the password is not
	// left for the program to read.
	sudoPasswordCommand = "sudo -k -S -H -p ''"
)

// wrap lets a command line run as that user. The one who may start a shell as root
// may start anything: then, and only then, programs in his own directories may run.
func (b become) wrap(command string) string {
	if b.command == "" {
		return command
	}
	return b.command + " /bin/sh -c " + remote.Quote(command)
}

// sudoRefusal returns what sudo said if that is what a far end died of.
func sudoRefusal(err error) string {
	exit, ok := errors.AsType[*transport.ExitError](err)
	if !ok {
		return ""
	}
	for line := range strings.Lines(exit.Stderr) {
		if strings.HasPrefix(line, "sudo: ") || strings.HasPrefix(line, "Sorry, user ") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// allowedScript finds a program in the system's directories, where this user may not
// write, that sudo lets him start without a password.
const allowedScript = `for d in /run/current-system/sw/bin /nix/var/nix/profiles/default/bin /usr/local/bin /usr/bin; do [ -w "$d" ] && [ "$(id -u)" != 0 ] && continue
for a in "copy-closure $1" "nix-store $2"; do sudo -n -l "$d"/$a >/dev/null 2>&1 && { echo "@$d/$a"; exit; }; done; done; echo @`

// mendSudo is for a sudo that does not start a shell without a password. A right to
// start the one program that is needed will do; else the password is asked for.
func (r *copyRun) mendSudo(ctx context.Context, far *farEnd, refused string) error {
	login := farEnd{farHost: farHost{conn: far.conn}}
	args := far.end.Arguments
	text, err := login.output(ctx, remote.Command(allowedScript, args("copy-closure"), args("nix-store")))
	far.execs += login.execs
	if err != nil {
		return err
	}
	_, found, _ := strings.Cut(text, "@")
	if program, _, _ := strings.Cut(strings.TrimSpace(found), " "); program != "" {
		r.log.Info("sudo starts no shell, but this program", "program", program)
		far.become = become{}
		far.end.Program = "sudo -n " + program
		r.host.program = far.end.Program
		return nil
	}
	return r.askSudoPassword(ctx, far, refused)
}

// askSudoPassword asks the person, and tries the password before anything else is
// sent behind it: what comes after a wrong one would be taken for the next.
func (r *copyRun) askSudoPassword(ctx context.Context, far *farEnd, refused string) error {
	ask := r.prompter()
	if ask == nil {
		return fmt.Errorf("%s; nobody is at a terminal to be asked for a password. Allow this user there to start, without one, copy-closure serve --write --trust-client or nix-store --serve --write (NOPASSWD in sudoers), or log in as root", refused)
	}
	if login := far.conn.Login(); !login.Verified {
		return &transport.UnverifiedHostError{Host: login.Address}
	}
	password, err := ask.Password(ctx, "Password for sudo on "+r.host.name+": ")
	if err != nil {
		return err
	}
	if password == "" || strings.ContainsAny(password, "\n\x00") {
		return errors.New("no password for sudo")
	}
	far.become = become{sudoPasswordCommand, transport.NewSecret(password)}
	far.execs += 2
	session, err := far.start(ctx, "cat")
	if err != nil {
		return err
	}
	err = session.CloseWrite()
	var left []byte
	if err == nil {
		left, err = io.ReadAll(io.LimitReader(session, 1))
	}
	err = errors.Join(err, session.Close())
	if len(left) > 0 { // sudo wants none, and would leave it to each program
		far.become = become{command: sudoCommand}
	}
	if exit, ok := errors.AsType[*transport.ExitError](err); ok {
		err = &lastWords{exit}
	}
	if err != nil {
		return fmt.Errorf("sudo on %s: %w", r.host.name, err)
	}
	return nil
}

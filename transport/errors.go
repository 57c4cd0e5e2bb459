package transport

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// ErrSessionRefused is found by errors.Is in the error of a session that the host
// would not open on a connection that goes on working: sshd's MaxSessions.
var ErrSessionRefused = errors.New("session refused")

// A ConnectError says that the host was not reached, or that the connection broke
// before the log-in began.
type ConnectError struct {
	Address string // host:port, or the destination where no address is known
	Err     error
}

func (e *ConnectError) Error() string { return fmt.Sprintf("connect to %s: %v", e.Address, e.Err) }
func (e *ConnectError) Unwrap() error { return e.Err }

// An AuthError says that the host did not let the user in.
type AuthError struct {
	User    string
	Address string   // host:port, or the destination where no address is known
	Tried   []string // what was offered, in order: "key SHA256:… (/home/u/.ssh/id_ed25519)", "password"
	Offered []string // the methods that the host would have taken further
	Notes   []string // what was not tried, and why
	Err     error    // what the client or the host said
}

func (e *AuthError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "log in as %s at %s: permission denied", e.User, e.Address)
	if len(e.Tried) > 0 {
		fmt.Fprintf(&b, "; tried %s", strings.Join(e.Tried, ", "))
	} else {
		b.WriteString("; there was nothing to try")
	}
	if len(e.Offered) > 0 {
		fmt.Fprintf(&b, "; the host takes %s", strings.Join(e.Offered, ", "))
	}
	for _, note := range e.Notes {
		b.WriteString("; " + note)
	}
	return b.String()
}

func (e *AuthError) Unwrap() error { return e.Err }

// A HostKeyProblem says what is wrong with a host key.
type HostKeyProblem int

// The problems of a HostKeyError.
const (
	HostKeyUnknown HostKeyProblem = iota // nothing is known about the host
	HostKeyChanged                       // another key is known for the host
	HostKeyRevoked                       // the key, or its authority, is marked @revoked
	HostKeyInvalid                       // the host's certificate is not good for this host or now
)

// A HostKeyError says that the host could not prove to be the one meant.
type HostKeyError struct {
	Problem     HostKeyProblem
	Host        string // as known_hosts names it: host or [host]:port
	KeyType     string // empty where the ssh program did the checking and did not say
	Fingerprint string // SHA256:…; empty likewise
	File        string // known_hosts file of the conflicting entry, if there is one
	Line        int    // its line there
	Err         error  // more about an invalid certificate, or what ssh printed
}

func (e *HostKeyError) Error() string {
	key := "host key"
	if e.Fingerprint != "" {
		key = fmt.Sprintf("host key %s %s", e.KeyType, e.Fingerprint)
	}
	at := ""
	if e.File != "" {
		at = fmt.Sprintf(" (%s line %d)", e.File, e.Line)
	}
	switch e.Problem {
	case HostKeyChanged:
		return fmt.Sprintf("%s of %s is not the one known%s: somebody may be in between, or the host has a new key; if you are sure, remove the old one with: ssh-keygen -R %s", key, e.Host, at, Quote(e.Host))
	case HostKeyRevoked:
		return fmt.Sprintf("%s of %s is revoked%s", key, e.Host, at)
	case HostKeyInvalid:
		return fmt.Sprintf("%s of %s: %v", key, e.Host, e.Err)
	}
	return fmt.Sprintf("%s of %s is not known: compare the fingerprint with the host's own (ssh-keygen -lf on its key), then accept it by connecting once with ssh, or with StrictHostKeyChecking accept-new", key, e.Host)
}

func (e *HostKeyError) Unwrap() error { return e.Err }

// An UnverifiedHostError says that a secret was not sent, as the host's key was let
// through without being verified.
type UnverifiedHostError struct {
	Host string // as known_hosts names it, or host:port
}

func (e *UnverifiedHostError) Error() string {
	return fmt.Sprintf("the host key of %s was not verified: no password is sent; add the key to known_hosts, or set StrictHostKeyChecking to ask or accept-new", e.Host)
}

// A LostError says that an established connection broke.
type LostError struct {
	Address string
	Err     error
}

func (e *LostError) Error() string { return fmt.Sprintf("connection to %s lost: %v", e.Address, e.Err) }
func (e *LostError) Unwrap() error { return e.Err }

// An ExitError says that a command ended otherwise than with status 0.
type ExitError struct {
	Command string
	Status  int    // -1 if it was ended by a signal, or did not say
	Signal  string // without SIG: "TERM"; empty if it was not ended by a signal
	Stderr  string // the last 16 KiB of what it wrote there
}

func (e *ExitError) Error() string { return shorten(e.Command) + ": " + e.Reason() }

// Reason tells how the command ended, without the command.
func (e *ExitError) Reason() string {
	text, isError := lastError(e.Stderr)
	if !isError {
		text = lastLine(e.Stderr)
	}
	var how string
	switch {
	case e.Signal != "":
		how = "killed by signal " + e.Signal
	case e.Status < 0:
		how = "ended without a status"
	case isError:
		return text
	default:
		how = fmt.Sprintf("exit status %d", e.Status)
	}
	if text != "" {
		how += ": " + text
	}
	return how
}

// An UnsupportedError says that the built-in client was asked for, or is all there
// is, and cannot do what a setting says.
type UnsupportedError struct {
	Host    string
	Setting string // "Compression is set"
	Reason  string // why ssh was not used instead
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("connect to %s: the built-in SSH client cannot honour this: %s; %s", e.Host, e.Setting, e.Reason)
}

// shorten makes a command fit for a line of an error.
func shorten(command string) string {
	const most = 60
	line, _, more := strings.Cut(command, "\n")
	if runes := []rune(line); len(runes) > most {
		line, more = string(runes[:most]), true
	}
	if more {
		line += "…"
	}
	return line
}

// maxErrorLines bounds how much of an error of several lines is shown.
const maxErrorLines = 20

// lastError returns the last error in what a command wrote, as Nix and we write it: a
// line that begins with "error:", and the lines behind it. Further errors right before it
// are part of it: Nix ends with "some builds failed" after it said why.
func lastError(stderr string) (text string, ok bool) {
	lines := strings.Split(strings.TrimRight(stderr, "\n"), "\n")
	first := -1
	for i, line := range slices.Backward(lines) {
		plain := colours.ReplaceAllString(line, "")
		if strings.HasPrefix(plain, errorPrefix) {
			first = i
		} else if first >= 0 && plain != "" && plain[0] != ' ' {
			break
		}
	}
	if first < 0 {
		return "", false
	}
	lines[first] = strings.TrimPrefix(colours.ReplaceAllString(lines[first], ""), errorPrefix)
	text = strings.TrimSpace(strings.Join(lines[first:], "\n"))
	if lines = strings.Split(text, "\n"); len(lines) > maxErrorLines {
		const kept = maxErrorLines - 1
		text = strings.Join(lines[:kept], "\n") + fmt.Sprintf("\n… (%d more lines)", len(lines)-kept)
	}
	return text, true
}

const errorPrefix = "error:"

// colours are the escape sequences with which Nix marks words.
var colours = regexp.MustCompile("\x1b\\[[0-9;]*m")

func lastLine(s string) string {
	s = strings.TrimRight(s, "\n")
	return s[strings.LastIndexByte(s, '\n')+1:]
}

package remote

import (
	"context"
	"fmt"
	"io"
	"strings"
)

// A Host starts programs on the machine of a far store.
type Host interface {
	// Start hands a command to the login shell there and returns the program's
	// standard input and output at once. Close ends the program; its error says how
	// it ended, with what it wrote to standard error.
	Start(ctx context.Context, command string) (io.ReadWriteCloser, error)
}

// A WideHost is a Host with several ways to its machine.
type WideHost interface {
	Host
	// StartFurther is Start for one of several sessions that share the bytes of a copy.
	// It may wait.
	StartFurther(ctx context.Context, command string) (io.ReadWriteCloser, error)
}

// start starts the first or a further session of a copy.
func start(ctx context.Context, host Host, further bool, command string) (io.ReadWriteCloser, error) {
	if wide, ok := host.(WideHost); ok && further {
		return wide.StartFurther(ctx, command)
	}
	return host.Start(ctx, command)
}

// Access is what a far end is asked to allow.
type Access int

const (
	Look  Access = iota // queries only: nothing changes there
	Read                // and temporary roots, where it can
	Write               // and paths may be added
)

// A FarEnd says which program to start on a host and with which store. The zero
// value searches for the best.
type FarEnd struct {
	Program string // as Nix's remote-program: given to the shell as it is; empty: search
	Store   string // as Nix's remote-store; empty: the program's default
	Access  Access
	Agents  []Agent // programs of ours that an earlier Bootstrap may have left there
	Prefer  bool    // take one of them also where Nix is
}

// Open starts a far end on host. It does not wait for an answer: the far end's
// greeting is read behind the first request.
func Open(ctx context.Context, host Host, far FarEnd, o Options) (*Store, error) {
	var s *Store
	open := func(ctx context.Context, further bool) (io.ReadWriteCloser, error) {
		command := far.startCommand()
		if further {
			if stream := s.takeEarly(); stream != nil {
				return stream, nil
			}
		}
		if further && s.first.prelude.program != "" {
			command = far.command(Quote(s.first.prelude.program))
		}
		return start(ctx, host, further, command)
	}
	s, err := newStore(ctx, open, o)
	if err == nil {
		s.asked = far.Program
		if command := far.earlyCommand(); o.Early && command != "" {
			s.early.begin = func(ctx context.Context) (io.ReadWriteCloser, error) { return start(ctx, host, true, command) }
		}
		s.openLane = func(ctx context.Context) (io.ReadWriteCloser, error) {
			go s.early.close() // it is not Nix's: they only take room
			return start(ctx, host, true, far.laneCommand(s.first.prelude.program))
		}
	}
	return s, err
}

// startCommand is the command of the first session.
func (f FarEnd) startCommand() string {
	if f.Program != "" {
		command := f.command(f.Program)
		if isOurs(programName(f.Program)) {
			command = "env " + PeerVariable + "=" + PeerAsks + f.planWish() + " " + command
		}
		return command
	}
	return f.shell(f.startScript())
}

// searchPath adds the directories where Nix and copy-closure usually are.
const searchPath = `for d in "$HOME/.nix-profile/bin" "$HOME/.local/state/nix/profile/bin" "/etc/profiles/per-user/$USER/bin" /nix/var/nix/profiles/default/bin /run/current-system/sw/bin /usr/local/bin; do PATH="$PATH:$d"; done; export PATH
`

// roomFunction says how much room the store $1 has, as far as that can be told.
const roomFunction = `room() { case $1 in "") d=/nix/store; [ -d "$d" ] || d=$HOME;; /*) d=$1;; *root=*) d=${1#*root=}; d=${d%%&*};; *) d=/nix/store;; esac
stat -f -c "` + marker + roomWord + ` %a %S %d %T" "$d" 2>/dev/null; }
`

// peerAsks tells a copy-closure that may be started that its client is one, too.
const peerAsks = "export " + PeerVariable + "=" + PeerAsks + "\n"

// planWish is the assignment that PlanVariable describes, where the far end is only looked
// at.
func (f FarEnd) planWish() string {
	if f.Access != Look {
		return ""
	}
	return " " + PlanVariable + "=1"
}

// startLine is a line of the start script: it starts a program, where there is one,
// behind the marker line.
const startLine = `if command -v %[1]s >/dev/null 2>&1; then room "$1"; echo "` + marker + `$(command -v %[1]s)"; exec %[1]s %[2]s ${1:+--store "$1"}; fi
`

// startScript finds the best program and starts it. Nix's own comes before an agent
// that was left there, which knows nothing of a Nix, unless that is preferred.
func (f FarEnd) startScript() string {
	ours := fmt.Sprintf(startLine, "copy-closure", f.Arguments("copy-closure"))
	nix := fmt.Sprintf(startLine, "nix-store", f.Arguments("nix-store"))
	if f.Prefer {
		nix = ""
	}
	wishes := peerAsks
	if plan := f.planWish(); plan != "" {
		wishes += "export" + plan + "\n"
	}
	return searchPath + wishes + roomFunction + ours + nix + f.agentScript() + missingLine
}

// Command is a command line for a login shell that runs script in /bin/sh, with
// the directories in PATH where a far end is searched, and args as $1, $2 and so on.
func Command(script string, args ...string) string {
	return shell(searchPath+script, args...)
}

// shell is a command line that runs script in /bin/sh, with args as $1, $2 and so on.
// The login shell may be csh, in which a quoted word holds no line break: the script
// is one line until /bin/sh has it. No login shell reads anything into the escapes.
func shell(script string, args ...string) string {
	line := strings.NewReplacer(`\`, `\0134`, "\n", `\0012`, "'", `\0047`, "!", `\0041`).Replace(script)
	command := `exec /bin/sh -c 's=$1; shift; eval "$(printf %b "$s")"' sh '` + line + "'"
	for _, arg := range args {
		command += " " + Quote(arg)
	}
	return command
}

// shell runs script with the store as $1, if one was named.
func (f FarEnd) shell(script string) string {
	if f.Store == "" {
		return shell(script)
	}
	return shell(script, f.Store)
}

// command starts a program that is known to be there.
func (f FarEnd) command(program string) string {
	args := f.Arguments(programName(program))
	if f.Store != "" {
		args += " --store" + quoteAfterSpace(f.Store)
	}
	return program + " " + args
}

// laneCommand is that of a further lane, where the first session found a program. A
// forced command in its place learns from the assignment what is wanted.
func (f FarEnd) laneCommand(found string) string {
	program := f.Program
	switch {
	case found != "":
		program = Quote(found)
	case program == "":
		program = "copy-closure"
	}
	return "env " + PeerVariable + "=" + PeerJoins + " " + program + " serve"
}

// programName is the last component of the last word of a command.
func programName(command string) string {
	words := strings.Fields(strings.Trim(command, "'"))
	if len(words) == 0 {
		return ""
	}
	last := words[len(words)-1]
	return last[strings.LastIndexByte(last, '/')+1:]
}

// Arguments are the words that make a program serve, by its name.
func (f FarEnd) Arguments(name string) string {
	ours := isOurs(name)
	switch {
	case ours && f.Access == Write:
		return "serve --write --trust-client"
	case ours:
		return "serve --read-only"
	case f.Access == Look:
		return "--serve"
	}
	return "--serve --write"
}

// IsOurs reports whether a program, as Program names it, is copy-closure, installed or
// uploaded.
func IsOurs(program string) bool { return isOurs(program[strings.LastIndexByte(program, '/')+1:]) }

// Above names the programs that are looked for before one, and so were not there where it
// was found.
func Above(program string) string {
	switch name := program[strings.LastIndexByte(program, '/')+1:]; {
	case name == "nix-store":
		return "copy-closure"
	case strings.HasPrefix(name, agentPrefix):
		return "copy-closure and nix-store"
	}
	return ""
}

func isOurs(name string) bool { return name == "copy-closure" || strings.HasPrefix(name, agentPrefix) }

func quoteAfterSpace(word string) string {
	if word == "" {
		return ""
	}
	return " " + Quote(word)
}

// Quote makes one word of s for a POSIX shell, for fish, and for csh where s has no
// line break. fish knows escapes within single quotes, and csh's history does not stop
// at them: the characters that are special there stand outside.
func Quote(s string) string {
	return "'" + strings.NewReplacer("'", `'\''`, `\`, `'\\'`, "!", `'\!'`).Replace(s) + "'"
}

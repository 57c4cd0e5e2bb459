package remote

import (
	"context"
	"fmt"
	"io"
	"strings"
)

// OpenDaemonOn starts nix-daemon --stdio on host, or ours if that is not there, and
// does not wait for an answer.
func OpenDaemonOn(ctx context.Context, host Host, far FarEnd, o Options) (*Daemon, error) {
	var d *Daemon
	open := func(ctx context.Context, further bool) (io.ReadWriteCloser, error) {
		command := far.workerCommand()
		if further && d.first.prelude.program != "" {
			command = far.workerProgram(Quote(d.first.prelude.program))
		}
		return start(ctx, host, further, command)
	}
	d, err := OpenDaemon(ctx, open, o)
	if err == nil {
		d.asked = far.Program
	}
	return d, err
}

// workerCommand is the command of the first session.
func (f FarEnd) workerCommand() string {
	if f.Program != "" {
		return f.workerProgram(f.Program)
	}
	script := searchPath + roomFunction
	for _, program := range []string{"nix-daemon", "copy-closure"} {
		script += fmt.Sprintf(startLine, program, f.workerArguments(program))
	}
	script += missingFacts + missingLine
	return f.shell(script)
}

// workerProgram starts a program that is known to be there.
func (f FarEnd) workerProgram(program string) string {
	words := strings.Fields(strings.Trim(program, "'"))
	command := program + " " + f.workerArguments(words[len(words)-1])
	if f.Store != "" {
		command += " --store" + quoteAfterSpace(f.Store)
	}
	return command
}

// workerArguments make a program speak the worker protocol, by its name.
func (f FarEnd) workerArguments(program string) string {
	if program[strings.LastIndexByte(program, '/')+1:] != "copy-closure" {
		return "--stdio"
	}
	if f.Access == Write {
		return "serve --daemon-protocol --write --trust-client"
	}
	return "serve --daemon-protocol --read-only"
}

// Side is the far end that speaks the serve protocol where f speaks the worker
// protocol. Ok is false where its program cannot be told.
func (f FarEnd) Side() (side FarEnd, ok bool) {
	if f.Program == "" {
		return f, true
	}
	front, ok := strings.CutSuffix(f.Program, "nix-daemon")
	f.Program = front + "nix-store"
	return f, ok
}

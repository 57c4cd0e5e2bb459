package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// orphanGrace is how long the output of a command that has ended is waited for,
// where something that it left behind keeps it open.
const orphanGrace = 300 * time.Millisecond

// LocalCommand runs a command on this machine. Its environment is env, or ours if
// that is nil. It gets a process group of its own, so that a Ctrl-C at the terminal
// reaches only us, and we decide what becomes of it. A nil logger discards.
func LocalCommand(ctx context.Context, argv, env []string, log *slog.Logger) (*Session, error) {
	if len(argv) == 0 {
		return nil, errors.New("no command")
	}
	p, err := startLocal(localSpec{argv: argv, env: env, ownGroup: true, log: log})
	if err != nil {
		return nil, err
	}
	return newSession(ctx, p), nil
}

// A localSpec describes a command of this machine.
type localSpec struct {
	argv     []string
	env      []string // nil: ours
	name     string   // for errors; empty: argv
	ownGroup bool     // else it may use the terminal, and ignores Ctrl-C
	stderr   func(string)
	log      *slog.Logger
	explain  func(*ExitError) error // may be nil; gives a better error for an exit
}

// A localProcess is a child process.
type localProcess struct {
	spec   localSpec
	cmd    *exec.Cmd
	stdin  *os.File
	stdout *os.File
	stderr *stderrLog
	said   chan struct{} // closed when stderr is read to its end
	errOut *os.File
}

func startLocal(spec localSpec) (*localProcess, error) {
	spec.log = orDiscard(spec.log)
	if spec.name == "" {
		spec.name = Quote(spec.argv...)
	}
	argv := spec.argv
	if !spec.ownGroup {
		// Only a shell can hand on an ignored signal; ssh leaves it ignored.
		argv = append([]string{"/bin/sh", "-c", `trap "" INT; exec "$@"`, "sh"}, argv...)
	}
	p := &localProcess{
		spec:   spec,
		cmd:    exec.Command(argv[0], argv[1:]...),
		stderr: &stderrLog{line: spec.stderr, log: spec.log},
		said:   make(chan struct{}),
	}
	p.cmd.Env = spec.env
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: spec.ownGroup}
	if err := p.start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.argv[0], err)
	}
	go func() {
		defer close(p.said)
		p.stderr.collect(p.errOut)
	}()
	return p, nil
}

// start makes the pipes by hand: those of os/exec are closed when the process ends,
// whether or not everything was read.
func (p *localProcess) start() error {
	var files []*os.File
	closeAll := func(files []*os.File) {
		for _, f := range files {
			f.Close()
		}
	}
	for range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(files)
			return err
		}
		files = append(files, r, w)
	}
	p.cmd.Stdin, p.stdin = files[0], files[1]
	p.stdout, p.cmd.Stdout = files[2], files[3]
	p.errOut, p.cmd.Stderr = files[4], files[5]
	if err := p.cmd.Start(); err != nil {
		closeAll(files)
		return err
	}
	closeAll([]*os.File{files[0], files[3], files[5]})
	return nil
}

func (p *localProcess) Read(b []byte) (int, error)  { return p.stdout.Read(b) }
func (p *localProcess) Write(b []byte) (int, error) { return p.stdin.Write(b) }

func (p *localProcess) CloseWrite() error {
	err := p.stdin.Close()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

func (p *localProcess) wait() error {
	p.cmd.Wait() // what it returns is in ProcessState
	select {
	case <-p.said:
	case <-time.After(orphanGrace):
		p.errOut.Close()
		<-p.said
	}
	exit := p.exitError()
	if exit == nil {
		return nil
	}
	if p.spec.explain != nil {
		return p.spec.explain(exit)
	}
	return exit
}

func (p *localProcess) exitError() *ExitError {
	state := p.cmd.ProcessState
	if state.Success() {
		return nil
	}
	exit := &ExitError{Command: p.spec.name, Status: state.ExitCode(), Stderr: p.stderr.text()}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		exit.Signal = strings.TrimPrefix(unix.SignalName(ws.Signal()), "SIG")
	}
	return exit
}

func (p *localProcess) interrupt() { p.signal(syscall.SIGTERM) }

func (p *localProcess) kill() {
	p.signal(syscall.SIGKILL)
	p.release()
}

// signal reaches the process and, where it has its own group, its children.
func (p *localProcess) signal(sig syscall.Signal) {
	pid := p.cmd.Process.Pid
	if p.spec.ownGroup {
		unix.Kill(-pid, sig)
		return
	}
	p.cmd.Process.Signal(sig)
}

func (p *localProcess) release() {
	p.stdin.Close()
	p.stdout.Close()
	p.errOut.Close()
}

// orDiscard returns log, or one that discards.
func orDiscard(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}

var _ io.ReadWriteCloser = (*Session)(nil)

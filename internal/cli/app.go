// Package cli is the command line: flags and wiring, one file for each command.
// It is the one place where all packages meet.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/copy-closure/copy-closure/internal/farend"
	"github.com/copy-closure/copy-closure/internal/ui"
	"github.com/copy-closure/copy-closure/substitute"
)

// What is alive is a few megabytes of bounded buffers, so the collector may let five
// times as much pile up, but no more than the limit in all.
const (
	gcPercent   = 400
	memoryLimit = 40 << 20 // bytes
)

// allowWindow makes room for what is under way in our own protocol, beyond what the limit
// has room for anyway: without, the collector would never rest.
func allowWindow(bytes int) {
	const within = 4 << 20
	debug.SetMemoryLimit(memoryLimit + int64(max(0, bytes-within)))
}

// leaveProcessors keeps half of the machine's processors for those who work beside
// us: SSH, the kernel's writing back, and the other sessions of the same copy; with
// all of them, much time went into handing work from one to the other.
func leaveProcessors() { runtime.GOMAXPROCS((runtime.NumCPU() + 1) / 2) }

// Main runs the command line and returns the exit code.
func Main(args []string) int {
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	ctx, stop := untilSignal(context.Background())
	defer stop()
	ctx, out := openOutput(ctx)
	p := &program{name: filepath.Base(args[0]), stdin: os.Stdin, stdout: ui.NewOutput(os.Stdout)}
	p.stdout.Writer = out
	p.umask = fs.FileMode(farend.SetUmask())
	p.screen = ui.NewScreen(os.Stderr, ui.Auto)
	p.log = slog.New(ui.NewLogHandler(p.screen, "", slog.LevelWarn))
	err := farend.CheckLoop()
	if err == nil {
		err = p.run(ctx, args[1:])
	}
	err = out.close(err)
	for _, end := range p.atEnd {
		end() // what matters was done, or has failed
	}
	if err != nil {
		p.report(err)
	}
	return exitCode(err)
}

// A program is one run of the command line.
type program struct {
	name   string // as invoked
	stdin  io.Reader
	stdout *ui.Output
	screen *ui.Screen
	umask  fs.FileMode // the user's
	log    *slog.Logger

	atEnd      []func() error // close what the whole program uses
	sshOptions []string       // in place of those of NIX_SSHOPTS, if not nil

	web     *substitute.Web // nil until a cache on a web server is used
	skipped map[string]bool // substituters of which there was a warning

	requireSigs *bool // what the URI of the store says; nil: nothing
}

// errInterrupted is the cause of a context that a signal ended.
var errInterrupted = errors.New("interrupted")

// untilSignal returns a context that ends at the first SIGINT, SIGTERM or SIGHUP;
// a second one kills the process.
func untilSignal(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		select {
		case <-signals:
			signal.Stop(signals)
			cancel(errInterrupted)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { signal.Stop(signals); cancel(nil) }
}

// run chooses by the name under which the program was invoked.
func (p *program) run(ctx context.Context, args []string) error {
	switch {
	case p.name == "nix-store":
		return p.runAsNixStore(ctx, args)
	case p.name == "nix-daemon":
		return p.runAsNixDaemon(ctx, args)
	case p.name == "nix-copy-closure":
		app := p.nixCopyClosureApp()
		args, err := takeSettings(args, flagKinds(app.Flags))
		if err != nil {
			return err
		}
		return p.runApp(ctx, app, args)
	}
	return p.runApp(ctx, p.app(), args)
}

// runApp arranges the arguments for the command that they name, and runs it.
func (p *program) runApp(ctx context.Context, app *cli.App, args []string) error {
	app.Writer, app.ErrWriter = p.stdout, p.screen
	app.ExitErrHandler = func(*cli.Context, error) {}
	app.OnUsageError = func(_ *cli.Context, err error, _ bool) error { return &usageError{err.Error()} }
	words, flags := []string{p.name}, app.Flags
	commands := app.Commands
	for len(args) > 0 {
		command := find(commands, args[0])
		if command == nil {
			break
		}
		words, flags, commands = append(words, args[0]), command.Flags, command.Subcommands
		command.OnUsageError = app.OnUsageError
		command.CustomHelpTemplate = commandHelp(words, command)
		args = args[1:]
	}
	if len(commands) > 0 && len(words) > 1 {
		return p.runGroup(app, words, commands, args)
	}
	arranged, err := arrange(args, flags)
	if err != nil {
		return err
	}
	return app.RunContext(ctx, append(words, arranged...))
}

// runGroup is for a command that needs a further word.
func (p *program) runGroup(app *cli.App, words []string, commands []*cli.Command, args []string) error {
	if len(args) > 0 && (args[0] == "--help" || args[0] == "-h") {
		return app.Run(append(words, "--help"))
	}
	var names []string
	for _, c := range commands {
		names = append(names, c.Name)
	}
	return usagef("say what to do: %s %s", strings.Join(words, " "), strings.Join(names, "|"))
}

func find(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

// app is the program under its own name.
func (p *program) app() *cli.App {
	return &cli.App{
		Name:                      "copy-closure",
		HideVersion:               true,
		HideHelpCommand:           true,
		CustomAppHelpTemplate:     helpText,
		DisableSliceFlagSeparator: true,
		Flags:                     copyFlags(),
		Action:                    func(c *cli.Context) error { return p.copyCommand(c, false) },
		Commands: []*cli.Command{
			p.planCommand(),
			p.checkCommand(),
			p.fetchCommand(),
			p.serveCommand(),
			p.storeCommand(),
			p.profileCommand(),
			p.channelCommand(),
			p.keyCommand(),
			p.signCommand(),
			p.verifyCommand(),
			p.cacheCommand(),
			p.demoCommand(),
			p.completionCommand(),
		},
	}
}

// nixCopyClosureApp is the program under the name of the tool that it replaces.
func (p *program) nixCopyClosureApp() *cli.App {
	return &cli.App{
		Name:                      "nix-copy-closure",
		HideVersion:               true,
		HideHelpCommand:           true,
		CustomAppHelpTemplate:     helpText,
		DisableSliceFlagSeparator: true,
		Flags:                     copyFlags(),
		Action:                    func(c *cli.Context) error { return p.copyCommand(c, true) },
	}
}

// setOutput applies the output flags that every command has.
func (p *program) setOutput(c *cli.Context) error {
	mode := ui.Mode(c.String("progress"))
	switch mode {
	case "", ui.Auto, ui.Bar, ui.Plain, ui.None:
	default:
		return usagef("--progress is auto, bar, plain or none, not %q", mode)
	}
	level := slog.LevelWarn
	switch verbose := c.Count("verbose"); {
	case c.Bool("quiet"):
		mode, level = ui.None, slog.LevelError
	case verbose == 1:
		level = slog.LevelInfo
	case verbose > 1:
		level = slog.LevelDebug
	}
	p.screen = ui.NewScreen(os.Stderr, mode)
	p.log = slog.New(ui.NewLogHandler(p.screen, "", level))
	return nil
}

// report prints the error of a run.
func (p *program) report(err error) {
	var usage *usageError
	var delegated *delegatedError
	if errors.As(err, &delegated) {
		return
	}
	if errors.As(err, &usage) {
		fmt.Fprintf(p.screen, "%s: %v\n", p.name, err)
		return
	}
	fmt.Fprintf(p.screen, "error: %v\n", err)
}

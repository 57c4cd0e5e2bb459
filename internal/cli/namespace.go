package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/copy-closure/copy-closure/internal/localstore"
)

// namespaceVariable tells a process that it was started again to write a store
// which is mounted read-only, as on NixOS.
const namespaceVariable = "COPY_CLOSURE_NAMESPACE"

// makeWritable remounts the store where we have a mount namespace of our own, and
// otherwise runs the whole command line again in one: the error is then a
// *delegatedError, and all has been done that was to do.
func (p *program) makeWritable(ctx context.Context, c localstore.Config) error {
	if !localstore.NeedsNamespace(c) {
		return nil
	}
	if os.Getenv(namespaceVariable) != "" {
		return localstore.RemountWritable(c)
	}
	p.log.Info("starting again in a mount namespace: the store is mounted read-only", "store", c.RealDir)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), namespaceVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	localstore.InNamespace(cmd)
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("start again in a mount namespace: %w", err)
	}
	return &delegatedError{code: cmd.ProcessState.ExitCode()}
}

// A delegatedError says that another process did the work and told what there was
// to tell.
type delegatedError struct{ code int }

func (e *delegatedError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

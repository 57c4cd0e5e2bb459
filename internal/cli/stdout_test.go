package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/copy-closure/copy-closure/e2e/harness"
)

// TestOutput wants the first error of standard output to end the run, once.
func TestOutput(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		harness.Unavailable(t, err)
	}
	defer full.Close()
	ctx, out := openOutput(t.Context())
	out.w = full
	for range 2 {
		if n, err := fmt.Fprintln(out, "result"); n > 0 || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%d bytes were written: %v", n, err)
		}
	}
	const want = "write standard output: no space left on device"
	if err := context.Cause(ctx); err == nil || err.Error() != want {
		t.Errorf("the run ended because of %v, want %s", err, want)
	}
	if err := out.close(nil); err == nil || err.Error() != want || exitCode(err) != exitFailed {
		t.Errorf("the run's result is %v (%d), want %s", err, exitCode(err), want)
	}
	if err := out.close(errInterrupted); err != errInterrupted {
		t.Errorf("the run's result is %v", err)
	}
}

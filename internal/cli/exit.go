package cli

import (
	"errors"
	"io/fs"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/substitute"
	"github.com/copy-closure/copy-closure/transport"
)

// Exit codes; the README lists them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3 // host not reached or not authenticated, or a cache
	exitUntrusted   = 4
	exitNotValid    = 5 // a path is not valid in the source
	exitDamaged     = 6 // on the way or in the source
	exitNoSpace     = 7 // at the destination
	exitInterrupted = 130
)

// A notInSourceError marks that the source, not the destination, lacks a path.
type notInSourceError struct{ err error }

func (e *notInSourceError) Error() string { return e.err.Error() }
func (e *notInSourceError) Unwrap() error { return e.err }

// exitCode is the one place where errors become exit codes.
func exitCode(err error) int {
	var usage *usageError
	var source *notInSourceError
	var connect *transport.ConnectError
	var auth *transport.AuthError
	var hostKey *transport.HostKeyError
	var unverified *transport.UnverifiedHostError
	var delegated *delegatedError
	var lost *transport.LostError
	var cache *substitute.UnusableError
	var output *outputError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &delegated):
		return delegated.code
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &connect), errors.As(err, &auth), errors.As(err, &hostKey), errors.As(err, &unverified), errors.As(err, &cache):
		return exitUnreachable
	case errors.Is(err, nix.ErrNotTrusted):
		return exitUntrusted
	case errors.As(err, &source) && (errors.Is(err, nix.ErrNotValid) || errors.Is(err, fs.ErrNotExist)):
		return exitNotValid
	case errors.As(err, &output):
		return exitFailed
	case errors.Is(err, nix.ErrNoSpace):
		return exitNoSpace
	case errors.Is(err, nix.ErrDamaged):
		return exitDamaged
	case !errors.As(err, &lost) && substitute.IsUnreachable(err): // a lost SSH connection was reached
		return exitUnreachable
	}
	return exitFailed
}

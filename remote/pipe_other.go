//go:build !linux

package remote

import "os"

// widen does nothing where pipes have one size.
func widen(pipes ...*os.File) {}

//go:build !linux

package localstore

import (
	"errors"
	"os/exec"
)

// NeedsNamespace reports false: only Linux has mount namespaces.
func NeedsNamespace(Config) bool { return false }

// InNamespace does nothing here.
func InNamespace(*exec.Cmd) {}

// RemountWritable returns an error: only Linux has mount namespaces.
func RemountWritable(Config) error {
	return errors.New("remount the store: this system has no mount namespaces")
}

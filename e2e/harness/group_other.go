//go:build !linux

package harness

import "syscall"

// ownGroup starts a process as the leader of its own group.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

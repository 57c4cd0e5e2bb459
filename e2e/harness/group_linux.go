package harness

import "syscall"

// ownGroup starts a process as the leader of its own group; it dies with us.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

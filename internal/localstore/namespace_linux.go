package localstore

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// NeedsNamespace reports whether the contents of a store are mounted read-only, as
// on NixOS, and this user could write them in a mount namespace of his own.
func NeedsNamespace(c Config) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(c.RealDir, &st); err != nil {
		return false
	}
	return os.Geteuid() == 0 && st.Flags&unix.ST_RDONLY != 0
}

// InNamespace has cmd started in a mount namespace of its own, where it may call
// RemountWritable.
func InNamespace(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	// Go makes all mounts private then, so that nothing gets out.
	cmd.SysProcAttr.Unshareflags |= syscall.CLONE_NEWNS
}

// RemountWritable makes the contents of a store writable in the mount namespace of
// this process. It refuses where that is also the namespace of the parent, whom it
// would make them writable for, too.
func RemountWritable(c Config) error {
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	parents, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", os.Getppid()))
	if err != nil {
		return err
	}
	if ours == parents {
		return errors.New("remount the store: this process has no mount namespace of its own")
	}
	if err := unix.Mount("", c.RealDir, "none", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("remount the store %s writable: %w", c.RealDir, err)
	}
	return nil
}

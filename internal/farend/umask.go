package farend

import "syscall"

// SetUmask lets all users read what we make for them, as Nix does: a store, a profile or a
// cache that only its maker can read is of no use. What is private has a mode of its own.
// It returns the umask of the user, for files that he names.
func SetUmask() (old int) { return syscall.Umask(0o022) }

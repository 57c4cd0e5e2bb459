package remote

import (
	"os"

	"golang.org/x/sys/unix"
)

// pipeSize is as much as any user may have.
const pipeSize = 1 << 20

// widen lets pipes hold more, so that the program at their other end is waited for, and
// woken, less often. What is no pipe stays as it is.
func widen(pipes ...*os.File) {
	for _, f := range pipes {
		unix.FcntlInt(f.Fd(), unix.F_SETPIPE_SZ, pipeSize) // fails where the user has too many
	}
}

//go:build !linux

package localstore

import (
	"os"

	"golang.org/x/sys/unix"
)

// allocate gives f its size; there is no portable way to reserve the room.
func allocate(f *os.File, size int64) error { return f.Truncate(size) }

// syncFileSystem writes all file systems to the disk.
func syncFileSystem(*os.File) error { return unix.Sync() }

// changeTime returns when an inode was last changed.
func changeTime(st *unix.Stat_t) unix.Timespec { return st.Ctim }

// sharesSpace is true everywhere: the native file systems here do.
func sharesSpace(*unix.Statfs_t) bool { return true }

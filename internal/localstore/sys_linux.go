package localstore

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocate gives f room on the disk, where the file system can do so.
func allocate(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return f.Truncate(size)
	}
	return err
}

// syncFileSystem writes all of the file system of an open file to the disk.
func syncFileSystem(f *os.File) error {
	return unix.Syncfs(int(f.Fd()))
}

// changeTime returns when an inode was last changed.
func changeTime(st *unix.Stat_t) unix.Timespec { return st.Ctim }

// zfsMagic is the type of ZFS, which is no part of Linux.
const zfsMagic = 0x2fc12fc1

func sharesSpace(st *unix.Statfs_t) bool {
	return int64(st.Type) == zfsMagic || int64(st.Type) == unix.BTRFS_SUPER_MAGIC
}

//go:build unix && !linux

package nar

import (
	"os"

	"golang.org/x/sys/unix"
)

// readDir appends the entries of the open directory fd to list, in no order.
func readDir(fd int, list []dirent, _ []byte) ([]dirent, error) {
	own, err := unix.Dup(fd)
	if err != nil {
		return list, err
	}
	unix.CloseOnExec(own)
	f := os.NewFile(uintptr(own), "")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	for _, name := range names {
		list = append(list, dirent{name: name})
	}
	return list, err
}

// setModTime sets the modification and access times of an open file to seconds
// after the epoch.
func setModTime(fd int, seconds int64) error {
	t := unix.NsecToTimeval(seconds * 1e9)
	return unix.Futimes(fd, []unix.Timeval{t, t})
}

// setLinkModTime does the same to a symbolic link.
func setLinkModTime(dir int, name string, seconds int64) error {
	t := unix.NsecToTimespec(seconds * 1e9)
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
}

package nar

import (
	"bytes"
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offsets in struct linux_dirent64.
const (
	direntLength = 16
	direntType   = 18
	direntName   = 19
)

// readDir appends the entries of the open directory fd to list, in no order. It
// reads into buf.
func readDir(fd int, list []dirent, buf []byte) ([]dirent, error) {
	for {
		n, err := uninterrupted(func() (int, error) { return unix.Getdents(fd, buf) })
		if n <= 0 || err != nil {
			return list, err
		}
		block, text := buf[:n], string(buf[:n]) // one allocation for all names
		for at := 0; at < n; at += int(binary.NativeEndian.Uint16(block[at+direntLength:])) {
			start := at + direntName
			name := text[start : start+bytes.IndexByte(block[start:], 0)]
			if name == "." || name == ".." {
				continue
			}
			list = append(list, dirent{name, uint32(block[at+direntType]) << 12})
		}
	}
}

// setModTime sets the modification time of an open file to seconds after the
// epoch and leaves the access time alone. The unix package has this call only
// for names.
func setModTime(fd int, seconds int64) error {
	times := modTimes(seconds)
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// setLinkModTime does the same to a symbolic link.
func setLinkModTime(dir int, name string, seconds int64) error {
	times := modTimes(seconds)
	return unix.UtimesNanoAt(dir, name, times[:], unix.AT_SYMLINK_NOFOLLOW)
}

func modTimes(seconds int64) [2]unix.Timespec {
	access := unix.Timespec{}
	access.Nsec = unix.UTIME_OMIT
	return [2]unix.Timespec{access, unix.NsecToTimespec(seconds * 1e9)}
}

package nar

import "golang.org/x/sys/unix"

// keptLevels is how many directories of a branch a walk keeps open. Those above are
// closed, and opened again by way of ".." when the walk comes back to them.
const keptLevels = 64

// A fileID tells a directory from others.
type fileID struct{ dev, ino uint64 }

func identify(fd int) (fileID, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return fileID{uint64(st.Dev), st.Ino}, err
}

// reopenParent opens the directory around dir, which must be the one that was closed:
// dir may have been moved meanwhile.
func reopenParent(dir int, parent fileID) (int, error) {
	fd, err := openat(dir, "..", dirFlags, 0)
	if err != nil {
		return -1, err
	}
	id, err := identify(fd)
	if err == nil && id != parent {
		err = ErrChanged
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// levels are the directories around the place where a walk stands, outermost first.
type levels []level

// A level is a directory of a walk; fd is negative while it is closed.
type level struct {
	fd int
	id fileID // of a closed one
}

// fd returns the innermost directory.
func (l levels) fd() int { return l[len(l)-1].fd }

// enter adds an open directory, and owns it from then on.
func (l *levels) enter(fd int) error {
	*l = append(*l, level{fd: fd})
	i := len(*l) - 1 - keptLevels
	if i < 0 {
		return nil
	}
	upper := &(*l)[i]
	var err error
	if upper.id, err = identify(upper.fd); err != nil {
		return err
	}
	unix.Close(upper.fd)
	upper.fd = -1
	return nil
}

// list enters the directory name in parent and lists it, with buf as scratch.
func (l *levels) list(parent int, name string, buf []byte) ([]dirent, error) {
	fd, err := openat(parent, name, dirFlags, 0)
	if err != nil {
		return nil, err
	}
	if err := l.enter(fd); err != nil {
		return nil, err
	}
	return readDir(fd, nil, buf)
}

// leave closes the innermost directory.
func (l *levels) leave() error {
	i := len(*l) - 1
	fd := l.fd()
	*l = (*l)[:i]
	defer unix.Close(fd)
	if i == 0 || (*l)[i-1].fd >= 0 {
		return nil
	}
	var err error
	(*l)[i-1].fd, err = reopenParent(fd, (*l)[i-1].id)
	return err
}

// close closes all.
func (l *levels) close() {
	for _, level := range *l {
		if level.fd >= 0 {
			unix.Close(level.fd)
		}
	}
	*l = nil
}

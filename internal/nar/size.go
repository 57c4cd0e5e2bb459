package nar

import (
	"context"

	"golang.org/x/sys/unix"
)

// Size returns the size of the archive that Dump would write, from the sizes of
// the files alone. It opens directories only, and fails where Dump would.
func Size(ctx context.Context, path string) (int64, error) {
	s := sizer{ctx: ctx, root: path, dirents: make([]byte, 32<<10)}
	defer s.open.close()
	n, err := s.node(unix.AT_FDCWD, path, path, 1)
	return int64(len(archiveStart)) + n, err
}

type sizer struct {
	ctx     context.Context
	root    string
	dirents []byte
	open    levels
}

// node returns the size of the node name in the directory dir, the depth-th from
// the root.
func (s *sizer) node(dir int, name, path string, depth int) (int64, error) {
	if tooDeep(depth, len(path)-len(s.root)-1) {
		return 0, pathError("dump", path, ErrTooDeep)
	}
	st, err := fstatat(dir, name)
	if err != nil {
		return 0, pathError("dump", path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return regularSize(st.Mode&unix.S_IXUSR != 0, st.Size), nil
	case unix.S_IFLNK:
		return symlinkSize(st.Size), nil
	case unix.S_IFDIR:
		return s.directory(dir, name, path, depth)
	}
	return 0, pathError("dump", path, ErrSpecial)
}

func (s *sizer) directory(parent int, name, path string, depth int) (int64, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	list, err := s.open.list(parent, name, s.dirents)
	if err != nil {
		return 0, pathError("dump", path, err)
	}
	total := int64(len(directoryStart) + len(tokClose))
	for _, entry := range list {
		n, err := s.node(s.open.fd(), entry.name, path+"/"+entry.name, depth+1)
		if err != nil {
			return 0, err
		}
		total += entrySize(entry.name) + n
	}
	if err := s.open.leave(); err != nil {
		return 0, pathError("dump", path, err)
	}
	return total, nil
}

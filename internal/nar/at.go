package nar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// treeFiles is how many files a Tree keeps open.
const treeFiles = 16

// A Tree is the archive of a file, directory or symbolic link on disk, readable
// at any offset: words are made as they are asked for, contents come from the
// files. It remembers names, kinds and sizes, about 100 bytes for each node, and
// no contents. Its methods may be called at the same time.
type Tree struct {
	dir   int // open directory in which the root lies, or unix.AT_FDCWD
	name  string
	path  string // for error messages
	nodes []treeNode
	size  int64

	mu     sync.Mutex
	files  []treeFile // the open ones, latest used first
	parent treeFile   // the directory in which the latest file lies
	words  []byte     // scratch
}

// A treeNode is a node of the tree, in the order of the archive.
type treeNode struct {
	offset int64 // where its bytes begin, from "entry" on
	size   int64 // of contents
	name   string
	target string
	parent int32 // index of its directory; -1 for the root
	closes int32 // closing words behind it: its own and those of directories that end here
	kind   Kind
	exec   bool
}

type treeFile struct {
	node int32
	fd   int
}

// Index reads the names, kinds and sizes of the tree at path, for the archive
// that Dump would write. It opens directories only, and fails where Dump would.
func Index(ctx context.Context, path string) (*Tree, error) {
	return index(ctx, &Tree{dir: unix.AT_FDCWD, name: path, path: path})
}

// IndexAt does the same for a name in an open directory, which may be closed
// when IndexAt has returned.
func IndexAt(ctx context.Context, dir *os.File, name string) (*Tree, error) {
	path := filepath.Join(dir.Name(), name)
	if err := checkName(name); err != nil {
		return nil, pathError("dump", path, err)
	}
	fd, err := unix.FcntlInt(dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, pathError("dump", path, err)
	}
	return index(ctx, &Tree{dir: fd, name: name, path: path})
}

func index(ctx context.Context, t *Tree) (*Tree, error) {
	t.parent.node = -1
	x := &indexer{ctx: ctx, t: t, dirents: make([]byte, 32<<10)}
	defer x.open.close()
	if err := x.node(t.dir, t.name, t.path, -1, 1); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	t.nodes[len(t.nodes)-1].closes-- // no entry ends behind the root
	t.layout()
	return t, nil
}

type indexer struct {
	ctx     context.Context
	t       *Tree
	dirents []byte
	open    levels
}

// node adds the node name in the directory dir, the depth-th from the root.
func (x *indexer) node(dir int, name, path string, parent int32, depth int) error {
	if tooDeep(depth, len(path)-len(x.t.path)-1) {
		return pathError("dump", path, ErrTooDeep)
	}
	st, err := fstatat(dir, name)
	if err != nil {
		return pathError("dump", path, err)
	}
	n := treeNode{name: name, parent: parent, closes: 2}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n.kind, n.exec, n.size = Regular, st.Mode&unix.S_IXUSR != 0, st.Size
	case unix.S_IFLNK:
		var buf [MaxTarget + 1]byte
		target, err := readlinkat(dir, name, &buf)
		if err != nil {
			return pathError("dump", path, err)
		}
		n.kind, n.target = Symlink, string(target)
	case unix.S_IFDIR:
		return x.directory(dir, name, path, parent, depth)
	default:
		return pathError("dump", path, ErrSpecial)
	}
	x.t.nodes = append(x.t.nodes, n)
	return nil
}

func (x *indexer) directory(parentDir int, name, path string, parent int32, depth int) error {
	if x.ctx.Err() != nil {
		return context.Cause(x.ctx)
	}
	list, err := x.open.list(parentDir, name, x.dirents)
	if err != nil {
		return pathError("dump", path, err)
	}
	slices.SortFunc(list, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
	self := int32(len(x.t.nodes))
	x.t.nodes = append(x.t.nodes, treeNode{name: name, parent: parent, kind: Directory})
	for _, entry := range list {
		if err := x.node(x.open.fd(), entry.name, path+"/"+entry.name, self, depth+1); err != nil {
			return err
		}
	}
	x.t.nodes[len(x.t.nodes)-1].closes += 2
	if err := x.open.leave(); err != nil {
		return pathError("dump", path, err)
	}
	return nil
}

// layout finds where in the archive each node stands.
func (t *Tree) layout() {
	t.size = int64(len(archiveStart))
	for i := range t.nodes {
		n := &t.nodes[i]
		if i > 0 {
			n.offset = t.size // the archive's start belongs to the root
		}
		t.words = t.before(n, t.words[:0])
		t.size = n.offset + int64(len(t.words)) + n.size + padding(n.size) + int64(n.closes)*int64(len(tokClose))
	}
}

// before appends what stands before a node's contents, or before its end if it
// has none.
func (t *Tree) before(n *treeNode, b []byte) []byte {
	if n.parent < 0 {
		b = append(b, archiveStart...)
	} else {
		b = appendEntryStart(b, n.name)
	}
	switch n.kind {
	case Regular:
		return appendRegularStart(b, n.exec, n.size)
	case Symlink:
		return appendSymlink(b, n.target)
	}
	return append(b, directoryStart...)
}

// behind appends what stands behind a node's contents.
func (n *treeNode) behind(b []byte) []byte {
	b = appendPadding(b, n.size)
	for range n.closes {
		b = append(b, tokClose...)
	}
	return b
}

// Size returns the size of the archive.
func (t *Tree) Size() int64 { return t.size }

// Files lists the regular files in the order of the archive.
func (t *Tree) Files() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		var words []byte
		for i := range t.nodes {
			n := &t.nodes[i]
			if n.kind != Regular {
				continue
			}
			words = t.before(n, words[:0])
			e := Entry{Path: t.pathOf(n), Kind: Regular, Executable: n.exec, Size: n.size, Offset: n.offset + int64(len(words))}
			if !yield(e) {
				return
			}
		}
	}
}

// pathOf returns a node's path as in Entry.
func (t *Tree) pathOf(n *treeNode) string {
	if n.parent < 0 {
		return ""
	}
	if dir := t.pathOf(&t.nodes[n.parent]); dir != "" {
		return dir + "/" + n.name
	}
	return n.name
}

// ReadAt reads from the archive as [io.ReaderAt] demands. A file that is not as
// it was when the Tree was made is an error wrapping ErrChanged, where the size or
// kind tells; contents that changed in place are read as they are.
func (t *Tree) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at offset %d", off)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	done := 0
	i := sort.Search(len(t.nodes), func(i int) bool { return t.nodes[i].offset > off }) - 1
	for ; done < len(p) && i < len(t.nodes); i++ {
		n, err := t.readNode(int32(i), p[done:], off+int64(done)-t.nodes[i].offset)
		done += n
		if err != nil {
			return done, err
		}
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// readNode copies to p what stands from offset off on in the i-th node's bytes.
func (t *Tree) readNode(i int32, p []byte, off int64) (int, error) {
	n := &t.nodes[i]
	t.words = t.before(n, t.words[:0])
	done := 0
	if off < int64(len(t.words)) {
		done = copy(p, t.words[off:])
		off += int64(done)
	}
	off -= int64(len(t.words))
	if want := min(int64(len(p)-done), n.size-off); want > 0 {
		if err := t.contents(i, p[done:done+int(want)], off); err != nil {
			return done, pathError("dump", filepath.Join(t.path, t.pathOf(n)), err)
		}
		done += int(want)
		off += want
	}
	if done < len(p) {
		t.words = n.behind(t.words[:0])
		if off -= n.size; off < int64(len(t.words)) {
			done += copy(p[done:], t.words[off:])
		}
	}
	return done, nil
}

// contents fills p from the i-th node's file.
func (t *Tree) contents(i int32, p []byte, off int64) error {
	fd, err := t.file(i)
	if err != nil {
		return err
	}
	for len(p) > 0 {
		n, err := uninterrupted(func() (int, error) { return unix.Pread(fd, p, off) })
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrChanged
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// file returns the i-th node's file, open.
func (t *Tree) file(i int32) (int, error) {
	at := slices.IndexFunc(t.files, func(f treeFile) bool { return f.node == i })
	if at >= 0 {
		f := t.files[at]
		copy(t.files[1:at+1], t.files)
		t.files[0] = f
		return f.fd, nil
	}
	fd, err := t.open(i)
	if err != nil {
		return -1, err
	}
	if len(t.files) == treeFiles {
		unix.Close(t.files[treeFiles-1].fd)
		t.files = t.files[:treeFiles-1]
	}
	t.files = slices.Insert(t.files, 0, treeFile{i, fd})
	return fd, nil
}

// open opens a file and looks whether it is the one that was indexed.
func (t *Tree) open(i int32) (int, error) {
	n := &t.nodes[i]
	dir, err := t.directory(n.parent)
	if err != nil {
		return -1, err
	}
	fd, err := openat(dir, n.name, readFlags, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != n.size) {
		err = ErrChanged
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// directory returns the i-th node, a directory, open. It stays so until another
// is asked for. Each component is opened beneath the one before: no link is
// followed, and the path may be longer than the system allows in one call.
func (t *Tree) directory(i int32) (int, error) {
	if i < 0 {
		return t.dir, nil
	}
	if t.parent.node == i {
		return t.parent.fd, nil
	}
	var chain []int32
	for n := i; n >= 0; n = t.nodes[n].parent {
		chain = append(chain, n)
	}
	at := t.dir
	for _, n := range slices.Backward(chain) {
		next, err := openat(at, t.nodes[n].name, dirFlags, 0)
		if at != t.dir {
			unix.Close(at)
		}
		if err != nil {
			return -1, err
		}
		at = next
	}
	t.closeParent()
	t.parent = treeFile{i, at}
	return at, nil
}

func (t *Tree) closeParent() {
	if t.parent.node >= 0 {
		unix.Close(t.parent.fd)
	}
	t.parent.node = -1
}

// Close closes what is open. The Tree cannot be read any more.
func (t *Tree) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.files {
		unix.Close(f.fd)
	}
	t.files, t.nodes = nil, nil
	t.closeParent()
	if t.dir == unix.AT_FDCWD {
		return nil
	}
	dir := t.dir
	t.dir = unix.AT_FDCWD
	if err := unix.Close(dir); err != nil {
		return &fs.PathError{Op: "close", Path: printable(t.path), Err: err}
	}
	return nil
}

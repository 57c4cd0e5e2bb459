package nar

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Writing behind: small files are gathered in batches, which some goroutines
// write while the next ones are read.
const (
	restoreBatches = 8  // of up to chunkSize each
	restoreFiles   = 64 // files and links in a batch
	defaultWorkers = 4
	maxOpenDirs    = 256
)

// canonicalTime is the modification time of everything in a store.
const canonicalTime = 1

// RestoreOptions say how a tree is made.
type RestoreOptions struct {
	// Canonical gives everything the metadata that a store requires:
	// directories have mode 0555, files 0444 or 0555, and everything was
	// modified at second 1. Otherwise the umask decides on the modes.
	Canonical bool

	// Workers is the number of goroutines that write small files: 0 for what
	// was found best, 1 to write all on the caller's.
	Workers int

	// OpenDirs is the number of open directories beyond which further ones wait
	// until others are complete: 0 for what was found best. A tree that is deeper
	// needs more, up to 64.
	OpenDirs int
}

// Restore makes the file, directory or symbolic link dest from the archive that
// r is about to give, and reads r to the archive's last byte and not beyond; r
// should be buffered, and is read by the caller's goroutine only. The directory
// of dest must exist, dest must not. Nothing is ever opened through a symbolic
// link below that directory. Up to about 2 MiB of small files are held in memory.
//
// When Restore fails, what it has made is left for RemoveAll. Errors name the
// file; one of the archive wraps a *FormatError. Where only r failed, or ctx was
// over, the error wraps a *BrokenError, and what was made is of use. A Read that
// blocks is not interrupted by ctx.
func Restore(ctx context.Context, r io.Reader, dest string, opts RestoreOptions) error {
	dir, err := os.Open(filepath.Dir(dest))
	if err != nil {
		return pathError("restore", dest, err)
	}
	defer dir.Close()
	return RestoreAt(ctx, r, dir, filepath.Base(dest), opts)
}

// A BrokenError says that a restore ended early through no fault of the archive or of
// the disk. The first Offset bytes of the archive are those of what was made, as an
// Index of it has them; what stands behind there in the Index means nothing.
type BrokenError struct {
	Offset int64
	Err    error
}

func (e *BrokenError) Error() string { return e.Err.Error() }
func (e *BrokenError) Unwrap() error { return e.Err }

// RestoreAt does the same for a name in an open directory.
func RestoreAt(ctx context.Context, r io.Reader, dir *os.File, name string, opts RestoreOptions) error {
	path := filepath.Join(dir.Name(), name)
	if err := checkName(name); err != nil {
		return pathError("restore", path, err)
	}
	defer runtime.KeepAlive(dir)
	writing, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	t := &restorer{
		caller:    ctx,
		ctx:       writing,
		cancel:    cancel,
		nar:       NewReader(r),
		canonical: opts.Canonical,
		workers:   opts.Workers,
		openDirs:  maxOpenDirs,
	}
	if t.workers <= 0 {
		t.workers = defaultWorkers
	}
	if opts.OpenDirs > 0 {
		t.openDirs = min(opts.OpenDirs, maxOpenDirs)
	}
	chunk := chunks.Get().(*[chunkSize]byte)
	defer chunks.Put(chunk)
	t.nar.chunk = chunk[:]
	parent := &targetDir{fd: int(dir.Fd()), name: filepath.Clean(dir.Name()), borrowed: true}
	parent.refs.Store(1)
	t.open = append(t.open, parent)
	return t.finish(t.tree(name))
}

// A restorer makes a tree. Directories and large files are made by the caller's
// goroutine; other nodes are collected in a batch. Once the first batch is full,
// workers are started that write them.
type restorer struct {
	caller    context.Context
	ctx       context.Context         // of writing, which goes on when the caller's is over
	cancel    context.CancelCauseFunc // with the first error
	whole     int64                   // bytes of the archive of which all is made or in a batch
	nar       *Reader
	canonical bool
	workers   int
	openDirs  int          // beyond which the batches are waited for
	open      []*targetDir // the given directory, then those around the next node
	dirs      atomic.Int32 // directories that are open

	batch   *batch
	made    int // batches that exist
	todo    chan *batch
	free    chan *batch
	unready sync.WaitGroup // batches handed on and not written
	running sync.WaitGroup // workers
}

// batches and chunks that no restorer has at the moment.
var (
	batches = sync.Pool{New: func() any { return &batch{buf: make([]byte, 0, chunkSize)} }}
	chunks  = sync.Pool{New: func() any { return new([chunkSize]byte) }}
)

// A batch is a number of nodes to make, and the contents of the files among them.
type batch struct {
	nodes []node
	buf   []byte
}

// A node is a regular file or symbolic link to make.
type node struct {
	dir        *targetDir
	name       string
	target     string // of a link, else empty
	executable bool
	size       int // of the contents, which follow those of the node before
}

// A targetDir is a directory that is being filled. It gets its final mode and is
// closed when everything in it is made: as long as it is open in the walk, has
// nodes in a batch, or has directories in it that are not complete, it has refs.
type targetDir struct {
	fd       int    // negative while it is closed, when the walk is far below
	id       fileID // of a closed one
	name     string
	parent   *targetDir
	refs     atomic.Int32
	borrowed bool
}

// tree makes the nodes of the archive, the root under the given name.
func (t *restorer) tree(root string) error {
	for {
		entry, err := t.nar.Next()
		if err == io.EOF {
			return nil
		}
		if overErr := t.over(); overErr != nil {
			return overErr
		}
		if err != nil {
			return t.pathError(t.open[0], root, err)
		}
		for len(t.open) > 1+t.nar.depth(entry) {
			if err := t.leave(); err != nil {
				return err
			}
		}
		name := root
		if entry.Path != "" {
			name = entry.Name()
		}
		if err := t.node(t.open[len(t.open)-1], name, entry); err != nil {
			return err
		}
	}
}

// over returns why no more is to be made, if that is so.
func (t *restorer) over() error {
	if t.ctx.Err() != nil {
		return context.Cause(t.ctx)
	}
	return context.Cause(t.caller)
}

// leave gives up the innermost directory.
func (t *restorer) leave() error {
	i := len(t.open) - 1
	dir := t.open[i]
	defer t.release(dir)
	t.open = t.open[:i]
	if dir.borrowed || t.open[i-1].fd >= 0 || t.ctx.Err() != nil {
		return nil
	}
	parent := t.open[i-1]
	err := t.limitOpen()
	if err == nil {
		parent.fd, err = reopenParent(dir.fd, parent.id)
	}
	if err != nil {
		err = pathError("restore", parent.path(), err)
		t.cancel(err)
		return err
	}
	t.dirs.Add(1)
	return nil
}

// enter adds a directory, and closes one far above it: nothing is made there until the walk
// comes back.
func (t *restorer) enter(dir *targetDir) error {
	t.open = append(t.open, dir)
	t.dirs.Add(1)
	i := len(t.open) - 1 - keptLevels
	if i < 1 {
		return nil // the given directory is not ours to close
	}
	if err := t.writeOut(); err != nil {
		return err
	}
	upper := t.open[i]
	var err error
	if upper.id, err = identify(upper.fd); err != nil {
		return pathError("restore", upper.path(), err)
	}
	t.close(upper)
	return nil
}

// close closes a directory, if it is open.
func (t *restorer) close(dir *targetDir) {
	if dir.fd >= 0 {
		unix.Close(dir.fd)
		t.dirs.Add(-1)
	}
	dir.fd = -1
}

func (d *targetDir) path() string {
	if d.parent == nil {
		return d.name
	}
	return filepath.Join(d.parent.path(), d.name)
}

// node makes a node, or adds it to the batch.
func (t *restorer) node(dir *targetDir, name string, entry *Entry) error {
	switch {
	case entry.Kind == Directory:
		return t.directory(dir, name)
	case entry.Size > chunkSize/2:
		return t.large(dir, name, entry)
	}
	if err := t.makeRoom(int(entry.Size)); err != nil {
		return err
	}
	b := t.batch
	start := len(b.buf)
	b.buf = slices.Grow(b.buf, int(entry.Size))[:start+int(entry.Size)]
	if _, err := io.ReadFull(t.nar, b.buf[start:]); err != nil {
		return t.pathError(dir, name, err)
	}
	if entry.Size > 0 {
		t.whole = entry.Offset + entry.Size
	}
	dir.refs.Add(1)
	b.nodes = append(b.nodes, node{dir, name, entry.Target, entry.Executable, int(entry.Size)})
	return nil
}

// directory makes a directory that is ours alone until it is complete.
func (t *restorer) directory(parent *targetDir, name string) error {
	if err := t.limitOpen(); err != nil {
		return err
	}
	mode := uint32(0o777)
	if t.canonical {
		mode = 0o700
	}
	if err := unix.Mkdirat(parent.fd, name, mode); err != nil {
		return t.pathError(parent, name, err)
	}
	fd, err := openat(parent.fd, name, dirFlags, 0)
	if err != nil {
		return t.pathError(parent, name, err)
	}
	dir := &targetDir{fd: fd, name: name, parent: parent}
	dir.refs.Store(1)
	parent.refs.Add(1)
	return t.enter(dir)
}

// limitOpen has directories completed where too many are open.
func (t *restorer) limitOpen() error {
	if int(t.dirs.Load()) < t.openDirs {
		return nil
	}
	return t.writeOut()
}

// writeOut makes all nodes that were read.
func (t *restorer) writeOut() error {
	if err := t.handOn(); err != nil {
		return err
	}
	t.unready.Wait()
	return nil
}

// release gives up a reference to a directory, and completes it with the last one.
func (t *restorer) release(dir *targetDir) {
	for dir.refs.Add(-1) == 0 && !dir.borrowed {
		if t.canonical && t.ctx.Err() == nil {
			if err := complete(dir.fd, 0o555); err != nil {
				t.cancel(pathError("restore", dir.path(), err))
			}
		}
		t.close(dir)
		dir = dir.parent
	}
}

// complete gives an open file the metadata of a store.
func complete(fd int, mode uint32) error {
	if err := unix.Fchmod(fd, mode); err != nil {
		return err
	}
	return setModTime(fd, canonicalTime)
}

// completeFile does the same for a file that was made with that mode, which a umask may
// have narrowed: to look is cheaper than to change what is right.
func completeFile(fd int, mode uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if uint32(st.Mode)&0o7777 != mode {
		return complete(fd, mode)
	}
	return setModTime(fd, canonicalTime)
}

// large makes a file that would not fit into a batch. It gets its size also where
// contents are missing.
func (t *restorer) large(dir *targetDir, name string, entry *Entry) error {
	return t.file(dir, name, entry.Executable, func(fd int) error {
		n, err := t.nar.WriteTo(contentWriter{t, fd})
		if err == nil || unix.Ftruncate(fd, entry.Size) == nil {
			t.whole = entry.Offset + n
		}
		return err
	})
}

// A contentWriter writes to an open file until the restorer is over.
type contentWriter struct {
	t  *restorer
	fd int
}

func (w contentWriter) Write(p []byte) (int, error) {
	if err := w.t.over(); err != nil {
		return 0, err
	}
	if err := writeAll(w.fd, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// file makes a regular file, which fill gives its contents.
func (t *restorer) file(dir *targetDir, name string, executable bool, fill func(fd int) error) error {
	mode := uint32(0o666)
	switch {
	case t.canonical && executable:
		mode = 0o555
	case t.canonical:
		mode = 0o444
	case executable:
		mode = 0o777
	}
	fd, err := openat(dir.fd, name, createFlags, mode)
	if err != nil {
		return t.pathError(dir, name, err)
	}
	err = fill(fd)
	if err == nil && t.canonical {
		err = completeFile(fd, mode)
	}
	if closeErr := unix.Close(fd); err == nil {
		err = closeErr
	}
	if err != nil {
		return t.pathError(dir, name, err)
	}
	return nil
}

func (t *restorer) symlink(dir *targetDir, name, target string) error {
	err := unix.Symlinkat(target, dir.fd, name)
	if err == nil && t.canonical {
		err = setLinkModTime(dir.fd, name, canonicalTime)
	}
	if err != nil {
		return t.pathError(dir, name, err)
	}
	return nil
}

// makeRoom makes t.batch one that has room for another node.
func (t *restorer) makeRoom(size int) error {
	if b := t.batch; b != nil && len(b.nodes) < restoreFiles && len(b.buf)+size <= chunkSize {
		return nil
	}
	if err := t.handOn(); err != nil {
		return err
	}
	select {
	case t.batch = <-t.free:
		return nil
	default:
	}
	if t.made < restoreBatches {
		t.made++
		t.batch = batches.Get().(*batch)
		return nil
	}
	select {
	case t.batch = <-t.free:
		return nil
	case <-t.ctx.Done():
		return context.Cause(t.ctx)
	}
}

// handOn has the batch written.
func (t *restorer) handOn() error {
	b := t.batch
	if b == nil {
		return nil
	}
	t.batch = nil
	if t.todo == nil {
		t.start()
	}
	t.unready.Add(1)
	if t.workers == 1 {
		t.write(b)
		return context.Cause(t.ctx)
	}
	t.todo <- b
	return nil
}

// start starts the workers, for which finish waits. No send on a channel blocks:
// each has room for all batches.
func (t *restorer) start() {
	t.todo = make(chan *batch, restoreBatches)
	t.free = make(chan *batch, restoreBatches)
	if t.workers == 1 {
		return
	}
	for range t.workers {
		t.running.Go(func() {
			for b := range t.todo {
				t.write(b)
			}
		})
	}
}

// finish completes what a walk that ended with err has begun.
func (t *restorer) finish(err error) error {
	broken := t.nar.failed() || t.caller.Err() != nil
	if err != nil && !broken {
		t.cancel(err)
	}
	if t.todo != nil {
		close(t.todo)
	}
	if t.batch != nil {
		t.makeAll(t.batch)
		batches.Put(t.batch)
		t.batch = nil
		t.made--
	}
	t.running.Wait()
	for range t.made {
		batches.Put(<-t.free)
	}
	if err != nil {
		t.cancel(&BrokenError{Offset: t.whole, Err: err}) // unless writing failed before
	}
	for len(t.open) > 0 {
		t.leave() // an error is the cause, if there is none yet
	}
	return context.Cause(t.ctx)
}

// write makes the nodes of a batch and readies it for another use.
func (t *restorer) write(b *batch) {
	t.makeAll(b)
	t.free <- b
	t.unready.Done()
}

// makeAll makes the nodes of a batch and readies it for another use; after an error it
// only releases their directories.
func (t *restorer) makeAll(b *batch) {
	content := b.buf
	for _, n := range b.nodes {
		if t.ctx.Err() == nil {
			var err error
			if n.target != "" {
				err = t.symlink(n.dir, n.name, n.target)
			} else {
				err = t.file(n.dir, n.name, n.executable, func(fd int) error {
					return writeAll(fd, content[:n.size])
				})
			}
			if err != nil {
				t.cancel(err)
			}
		}
		content = content[n.size:]
		t.release(n.dir)
	}
	clear(b.nodes)
	b.nodes, b.buf = b.nodes[:0], b.buf[:0]
}

func (t *restorer) pathError(dir *targetDir, name string, err error) error {
	return pathError("restore", filepath.Join(dir.path(), name), err)
}

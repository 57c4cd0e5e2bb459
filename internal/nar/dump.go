package nar

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Reading ahead: while one segment of the archive is written, others are read
// from the file system.
const (
	dumpSegments = 8  // of up to chunkSize each
	ownSegments  = 2  // that every Dump may have; for more it needs one of spare
	dumpSteps    = 16 // nodes in a segment
	dumpReaders  = 3
)

// spare bounds the memory of a process in which many Dumps run at once: it is the
// segments beyond their own that all of them together may have.
var spare = make(chan struct{}, 64)

// segments that no Dump has at the moment.
var segments = sync.Pool{New: func() any {
	return &segment{buf: make([]byte, 0, chunkSize), done: make(chan struct{}, 1)}
}}

// Dump writes the file, directory or symbolic link at path to w as an archive.
// It follows no link, not even at path itself. A file that is none of the three
// is an error wrapping ErrSpecial, and one that changes its size meanwhile one
// wrapping ErrChanged; both name the file. Of many small files some are read
// ahead, by about 2 MiB, less where many Dumps run at once; w is called by one goroutine at a time, not always the
// caller's, and never after Dump has returned. When Dump fails, part of the
// archive may have been written. A Write that blocks is not interrupted by ctx.
func Dump(ctx context.Context, w io.Writer, path string) error {
	return dump(ctx, w, unix.AT_FDCWD, path, path, nil)
}

// DumpAt does the same for a name in an open directory.
func DumpAt(ctx context.Context, w io.Writer, dir *os.File, name string) error {
	path := filepath.Join(dir.Name(), name)
	if err := checkName(name); err != nil {
		return pathError("dump", path, err)
	}
	defer runtime.KeepAlive(dir)
	return dump(ctx, w, int(dir.Fd()), name, path, nil)
}

func dump(ctx context.Context, w io.Writer, dir int, name, path string, m *marker) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	d := &dumper{ctx: ctx, cancel: cancel, w: w, marker: m}
	d.segment = d.newSegment()
	d.segment.buf = append(d.segment.buf, archiveStart...)
	above := strings.TrimSuffix(path, name)
	d.above = len(path) + 1
	d.open = []sourceLevel{{dir: &sourceDir{fd: dir, path: above, borrowed: true}}}
	err := d.finish(d.node(dirent{name: name}, 1))
	for _, level := range d.open {
		if level.dir != nil {
			level.dir.release()
		}
	}
	return err
}

// A dumper walks a tree in the order of the archive and cuts what it finds into
// segments. Until the first is full there is only the caller's goroutine. From
// then on some goroutines fill segments, each a different one, and one writes
// them in their order.
type dumper struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc // with the first error
	w       io.Writer
	marker  *marker // nil: nothing is noted down
	dirents []byte
	above   int           // bytes of a path that are not below the root
	open    []sourceLevel // the given directory, then those around the next node

	segment *segment // that the walk is adding to
	made    int      // segments that exist
	todo    chan *segment
	order   chan *segment
	free    chan *segment
	running sync.WaitGroup
}

// A segment is a part of the archive: first steps to take, then, in buf, their
// result.
type segment struct {
	steps []step
	taken int // steps that are in buf
	buf   []byte
	err   error
	done  chan struct{} // receives when the steps are taken
	link  [MaxTarget + 1]byte

	marked bool   // the tree gets a Mark
	notes  []byte // for it
	newest int64
}

// A step adds a piece to an archive. Those of directories are ready: tokens.
type step struct {
	tokens string
	dir    *sourceDir // with a file
	name   string
	kind   uint32
	root   bool
}

// A sourceDir is an open directory, closed when the last step in it is done.
type sourceDir struct {
	fd       int
	path     string // with a slash at the end, for error messages
	refs     atomic.Int32
	borrowed bool
}

func (s *sourceDir) release() {
	if s.refs.Add(-1) == 0 && !s.borrowed {
		unix.Close(s.fd)
	}
}

// A sourceLevel is a directory around the place where a walk stands; dir is nil while the
// walk has given it up.
type sourceLevel struct {
	dir  *sourceDir
	path string // of one that was given up
	id   fileID // likewise
}

// enter adds a directory with one reference.
func (d *dumper) enter(dir *sourceDir) error {
	d.open = append(d.open, sourceLevel{dir: dir})
	i := len(d.open) - 1 - keptLevels
	if i < 1 {
		return nil // the given directory is not ours to close
	}
	id, err := identify(d.open[i].dir.fd)
	if err != nil {
		return pathError("dump", d.open[i].dir.path, err)
	}
	dir = d.open[i].dir
	d.open[i] = sourceLevel{path: dir.path, id: id}
	dir.release()
	return nil
}

// leave gives up the innermost directory.
func (d *dumper) leave() error {
	i := len(d.open) - 1
	dir, parent := d.open[i].dir, &d.open[i-1]
	defer dir.release()
	d.open = d.open[:i]
	if parent.dir != nil {
		return nil
	}
	fd, err := reopenParent(dir.fd, parent.id)
	if err != nil {
		return pathError("dump", dir.path, err)
	}
	parent.dir = &sourceDir{fd: fd, path: parent.path}
	parent.dir.refs.Store(1)
	return nil
}

// node walks the node that entry names in the innermost directory, the depth-th from the
// root.
func (d *dumper) node(entry dirent, depth int) error {
	dir := d.open[len(d.open)-1].dir
	path := dir.path + entry.name
	if tooDeep(depth, len(path)-d.above) {
		return pathError("dump", path, ErrTooDeep)
	}
	if entry.kind == 0 {
		st, err := fstatat(dir.fd, entry.name)
		if err != nil {
			return pathError("dump", path, err)
		}
		entry.kind = uint32(st.Mode) & unix.S_IFMT
	}
	switch entry.kind {
	case unix.S_IFDIR:
		return d.directory(dir, entry.name, depth)
	case unix.S_IFREG, unix.S_IFLNK:
		dir.refs.Add(1)
		return d.add(step{dir: dir, name: entry.name, kind: entry.kind, root: depth == 1})
	}
	return pathError("dump", path, ErrSpecial)
}

func (d *dumper) directory(parent *sourceDir, name string, depth int) error {
	path := parent.path + name
	fd, err := openat(parent.fd, name, dirFlags, 0)
	if err != nil {
		return pathError("dump", path, err)
	}
	dir := &sourceDir{fd: fd, path: strings.TrimSuffix(path, "/") + "/"}
	dir.refs.Store(1)
	if err := d.enter(dir); err != nil {
		return err
	}
	if d.dirents == nil {
		d.dirents = make([]byte, 32<<10)
	}
	list, err := readDir(fd, nil, d.dirents)
	if err != nil {
		return pathError("dump", path, err)
	}
	slices.SortFunc(list, func(a, b dirent) int { return strings.Compare(a.name, b.name) })

	before, behind := directoryStart, tokClose
	if depth > 1 {
		before = string(append(appendEntryStart(nil, name), directoryStart...))
		behind = tokClose + tokClose
	}
	if err := d.add(step{tokens: before}); err != nil {
		return err
	}
	for _, entry := range list {
		if err := d.node(entry, depth+1); err != nil {
			return err
		}
	}
	if err := d.add(step{tokens: behind}); err != nil {
		return err
	}
	return d.leave()
}

// add appends a step to the segment, and hands the segment on when it is full.
func (d *dumper) add(s step) error {
	d.segment.steps = append(d.segment.steps, s)
	if len(d.segment.steps) < dumpSteps {
		return nil
	}
	if d.order == nil {
		d.start()
	}
	d.handOn()
	select {
	case d.segment = <-d.free:
		return nil
	default:
	}
	if d.made < dumpSegments && (d.made < ownSegments || d.takeSpare()) {
		d.segment = d.newSegment()
		return nil
	}
	select {
	case d.segment = <-d.free:
		return nil
	case <-d.ctx.Done():
		return context.Cause(d.ctx)
	}
}

func (d *dumper) takeSpare() bool {
	select {
	case spare <- struct{}{}:
		return true
	default:
		return false
	}
}

func (d *dumper) newSegment() *segment {
	d.made++
	s := segments.Get().(*segment)
	s.marked = d.marker != nil
	return s
}

func (d *dumper) handOn() {
	d.order <- d.segment
	d.todo <- d.segment
	d.segment = nil
}

// start starts the goroutines that finish waits for. No send on a channel blocks:
// each has room for all segments.
func (d *dumper) start() {
	d.todo = make(chan *segment, dumpSegments)
	d.order = make(chan *segment, dumpSegments)
	d.free = make(chan *segment, dumpSegments)
	for range dumpReaders {
		d.running.Go(func() {
			for s := range d.todo {
				if d.ctx.Err() == nil {
					s.fill(nil)
				}
				s.done <- struct{}{}
			}
		})
	}
	d.running.Go(func() {
		for s := range d.order {
			<-s.done
			d.write(s)
			d.free <- s
		}
	})
}

// finish ends the archive after a walk that ended with err.
func (d *dumper) finish(err error) error {
	if err != nil {
		d.cancel(err)
	}
	if d.order == nil {
		d.write(d.segment)
		segments.Put(d.segment)
		return context.Cause(d.ctx)
	}
	if d.segment != nil {
		d.handOn()
	}
	close(d.todo)
	close(d.order)
	d.running.Wait()
	for range d.made - ownSegments {
		<-spare
	}
	for range d.made {
		segments.Put(<-d.free)
	}
	return context.Cause(d.ctx)
}

// write writes a segment, takes the steps in it that are not taken yet, and
// readies it for another use. After an error it only releases what the steps hold.
func (d *dumper) write(s *segment) {
	if d.ctx.Err() == nil {
		out := func(p []byte) error {
			if d.ctx.Err() != nil {
				return context.Cause(d.ctx)
			}
			n, err := d.w.Write(p)
			if err == nil && n < len(p) {
				err = io.ErrShortWrite
			}
			return err
		}
		if s.err == nil && s.taken < len(s.steps) {
			s.fill(out)
		}
		if s.err == nil {
			s.err = out(s.buf)
		}
		if s.err != nil {
			d.cancel(s.err)
		}
		if s.marked {
			d.marker.add(s)
		}
	}
	for _, step := range s.steps {
		if step.dir != nil {
			step.dir.release()
		}
	}
	clear(s.steps)
	s.steps, s.taken, s.buf, s.err = s.steps[:0], 0, s.buf[:0], nil
	s.notes, s.newest = s.notes[:0], 0
}

// fill takes the segment's steps until buf is full. If out is not nil, all steps
// are taken, and what does not fit into buf goes to out.
func (s *segment) fill(out func([]byte) error) {
	for s.err == nil && s.taken < len(s.steps) {
		step := &s.steps[s.taken]
		fits := true
		switch {
		case step.dir == nil:
			s.buf = append(s.buf, step.tokens...)
			s.note(step.tokens)
		case step.kind == unix.S_IFLNK:
			s.err = s.symlink(step)
		default:
			fits, s.err = s.regular(step, out)
		}
		if !fits {
			return
		}
		s.taken++
	}
}

func (s *segment) symlink(step *step) error {
	target, err := readlinkat(step.dir.fd, step.name, &s.link)
	if err != nil {
		return step.error(err)
	}
	s.begin(step)
	s.buf = appendSymlink(s.buf, string(target))
	s.note(step.name)
	s.note(string(target))
	s.end(step)
	return nil
}

// regular takes the step of a regular file, or returns false if buf has no room
// for it and out is nil.
func (s *segment) regular(step *step, out func([]byte) error) (bool, error) {
	fd, err := openat(step.dir.fd, step.name, readFlags, 0)
	if err != nil {
		return true, step.error(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return true, step.error(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return true, step.error(ErrChanged)
	}
	const around = 512 // bytes of tokens and the name, at most
	room := int64(chunkSize - len(s.buf) - around)
	if st.Size > room && out == nil {
		return false, nil
	}
	s.begin(step)
	s.buf = appendRegularStart(s.buf, st.Mode&unix.S_IXUSR != 0, st.Size)
	if st.Size <= room {
		err = s.contents(fd, st.Size, step)
	} else {
		err = s.stream(fd, st.Size, step, out)
	}
	s.buf = appendPadding(s.buf, st.Size)
	s.end(step)
	s.note(step.name)
	if err == nil {
		err = s.noteFile(fd)
	}
	return true, err
}

// contents appends a file's contents to buf. It asks for a byte more than there
// should be, to notice a file that has grown.
func (s *segment) contents(fd int, size int64, step *step) error {
	n := len(s.buf)
	s.buf = slices.Grow(s.buf, int(size)+1)
	got, err := readUpTo(fd, s.buf[n:n+int(size)+1], int(size))
	if err != nil {
		return step.error(err)
	}
	s.buf = s.buf[:n+got]
	return nil
}

// stream passes what is in buf and then a file's contents to out, by way of buf.
func (s *segment) stream(fd int, size int64, step *step, out func([]byte) error) error {
	if err := out(s.buf); err != nil {
		return err
	}
	s.buf = slices.Grow(s.buf[:0], chunkSize)
	for left := size; left > 0; {
		want := int(min(left, chunkSize-1))
		beyond := 0
		if int64(want) == left {
			beyond = 1
		}
		got, err := readUpTo(fd, s.buf[:want+beyond], want)
		if err != nil {
			return step.error(err)
		}
		if err := out(s.buf[:got]); err != nil {
			return err
		}
		left -= int64(got)
	}
	return nil
}

// readUpTo fills p with want bytes of a file. If p has room for more and there is
// more, or if there is less, the file has changed.
func readUpTo(fd int, p []byte, want int) (int, error) {
	got := 0
	for {
		n, err := read(fd, p[got:])
		if err != nil {
			return got, err
		}
		got += n
		if n == 0 || got >= want {
			break
		}
	}
	if got != want {
		return got, ErrChanged
	}
	return got, nil
}

// begin appends what stands before a node, end what stands behind.
func (s *segment) begin(step *step) {
	if !step.root {
		s.buf = appendEntryStart(s.buf, step.name)
	}
}

func (s *segment) end(step *step) {
	s.buf = append(s.buf, tokClose...)
	if !step.root {
		s.buf = append(s.buf, tokClose...)
	}
}

func (s *step) error(err error) error { return pathError("dump", s.dir.path+s.name, err) }

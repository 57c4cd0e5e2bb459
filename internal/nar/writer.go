package nar

import (
	"fmt"
	"io"
	"strings"
)

// A Writer makes an archive node by node, in the order in which a Reader returns
// them. Directories end by themselves where a node outside of them follows.
// Its first error sticks. A Writer may be used by one goroutine at a time.
type Writer struct {
	w       io.Writer
	buf     []byte
	err     error
	started bool
	open    []openDir // the directories that the next node may be in
	dir     string    // path of the innermost of them
	left    int64     // bytes of contents that are still to come
	pad     int64     // bytes of padding behind the contents
	inFile  bool
}

// NewWriter returns a Writer of one archive onto w. Small pieces are gathered;
// Close writes the last of them.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Directory begins a directory. The root's path is empty.
func (w *Writer) Directory(path string) error {
	return w.Next(&Entry{Path: path, Kind: Directory})
}

// Regular begins a regular file, whose size bytes of contents are to be written
// with Write.
func (w *Writer) Regular(path string, executable bool, size int64) error {
	return w.Next(&Entry{Path: path, Kind: Regular, Executable: executable, Size: size})
}

// Symlink adds a symbolic link.
func (w *Writer) Symlink(path, target string) error {
	return w.Next(&Entry{Path: path, Kind: Symlink, Target: target})
}

// Next adds the node that e describes; e.Offset is ignored.
func (w *Writer) Next(e *Entry) error {
	if w.err == nil {
		w.err = w.next(e)
	}
	return w.err
}

func (w *Writer) next(e *Entry) error {
	if err := w.endFile(); err != nil {
		return err
	}
	if err := w.place(e.Path); err != nil {
		return pathError("write NAR entry", e.Path, err)
	}
	switch e.Kind {
	case Directory:
		w.buf = append(w.buf, directoryStart...)
		w.open = append(w.open, openDir{end: len(e.Path)})
		w.dir = e.Path
		return nil
	case Symlink:
		if err := checkTarget(e.Target); err != nil {
			return pathError("write NAR entry", e.Path, err)
		}
		w.buf = appendSymlink(w.buf, e.Target)
		w.buf = append(w.buf, tokClose...)
		w.endEntry()
		return w.flush(chunkSize / 8)
	case Regular:
		if e.Size < 0 {
			return pathError("write NAR entry", e.Path, fmt.Errorf("size %d is negative", e.Size))
		}
		w.buf = appendRegularStart(w.buf, e.Executable, e.Size)
		w.inFile, w.left, w.pad = true, e.Size, padding(e.Size)
		return nil
	}
	return pathError("write NAR entry", e.Path, fmt.Errorf("unknown file type %v", e.Kind))
}

// place ends directories until path is in the innermost one, and begins its entry.
func (w *Writer) place(path string) error {
	if !w.started {
		if path != "" {
			return fmt.Errorf("the root comes first")
		}
		w.started = true
		w.buf = append(w.buf, archiveStart...)
		return nil
	}
	dir, name := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	if err := checkName(name); err != nil {
		return err
	}
	for len(w.open) > 0 && w.dir != dir {
		w.endDirectory()
	}
	if len(w.open) == 0 {
		return fmt.Errorf("its directory is not open")
	}
	if tooDeep(len(w.open)+1, len(path)) {
		return ErrTooDeep
	}
	parent := &w.open[len(w.open)-1]
	if name <= parent.last {
		return fmt.Errorf("not in order, behind %q", parent.last)
	}
	parent.last = name
	w.buf = appendEntryStart(w.buf, name)
	return nil
}

// Write writes contents of the regular file that was begun last.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if int64(len(p)) > w.left {
		w.err = fmt.Errorf("write NAR: more contents than announced")
		return 0, w.err
	}
	w.left -= int64(len(p))
	if len(p) < chunkSize/8 {
		w.buf = append(w.buf, p...)
		w.err = w.flush(chunkSize / 8)
	} else if w.err = w.flush(1); w.err == nil {
		_, w.err = w.w.Write(p)
	}
	if w.err != nil {
		return 0, w.err
	}
	return len(p), nil
}

// Close ends the archive and writes what is buffered; it does not close the
// writer below.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	if !w.started {
		w.err = fmt.Errorf("write NAR: no root")
		return w.err
	}
	if w.err = w.endFile(); w.err != nil {
		return w.err
	}
	for len(w.open) > 0 {
		w.endDirectory()
	}
	w.err = w.flush(1)
	return w.err
}

// endFile ends the regular file that is being written, if there is one.
func (w *Writer) endFile() error {
	if !w.inFile {
		return nil
	}
	if w.left > 0 {
		return fmt.Errorf("write NAR: %d bytes of contents are missing", w.left)
	}
	w.inFile = false
	w.buf = append(w.buf, tokEmpty[:w.pad]...)
	w.buf = append(w.buf, tokClose...)
	w.endEntry()
	return w.flush(chunkSize / 8)
}

func (w *Writer) endDirectory() {
	w.open = w.open[:len(w.open)-1]
	if len(w.open) > 0 {
		w.dir = w.dir[:w.open[len(w.open)-1].end]
	}
	w.buf = append(w.buf, tokClose...)
	w.endEntry()
}

// endEntry ends the entry around a node; the root has none.
func (w *Writer) endEntry() {
	if len(w.open) > 0 {
		w.buf = append(w.buf, tokClose...)
	}
}

// flush writes the buffer out when it holds at least n bytes.
func (w *Writer) flush(n int) error {
	if len(w.buf) < n {
		return nil
	}
	_, err := w.w.Write(w.buf)
	w.buf = w.buf[:0]
	return err
}

package nar

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

// chunkSize is how much contents are moved at once.
const chunkSize = 256 << 10

// A Reader reads one archive from a stream, node by node, in the order in which
// they stand there: a directory before its entries, entries in the order of
// their names' bytes. Any error sticks. A Reader may be used by one goroutine at
// a time.
//
// It asks the stream only for bytes that the archive must still have, so that
// the stream stands right behind the archive once Next has returned io.EOF.
// That makes many small reads: give it a buffered stream.
type Reader struct {
	src   io.Reader
	off   int64 // bytes read from src
	err   error
	kind  Kind      // of the current node, zero before the first
	path  string    // of the current node
	open  []openDir // the directories around the next node
	left  int64     // bytes of contents not read yet
	pad   int       // bytes of padding behind the contents
	buf   [MaxTarget + 4*wordSize]byte
	chunk []byte // for contents that are passed on or skipped
}

// An openDir is a directory whose entries are being read or written.
type openDir struct {
	end  int    // where its path ends in that of the current node
	last string // name of the latest entry
}

// NewReader returns a Reader of the archive that begins at r's next byte.
func NewReader(r io.Reader) *Reader { return &Reader{src: r} }

// Next moves to the next node, past what is left of the current one's contents.
// At the archive's end it returns io.EOF, and only there. A stream that is not
// an archive gives a *FormatError, other errors of the stream are passed on.
func (r *Reader) Next() (*Entry, error) {
	if r.err != nil {
		return nil, r.err
	}
	e, err := r.next()
	if err != nil {
		r.err = err
		return nil, err
	}
	return e, nil
}

func (r *Reader) next() (*Entry, error) {
	var more bool
	var err error
	switch r.kind {
	case Regular:
		if err := r.skip(); err != nil {
			return nil, err
		}
		more, err = r.afterLeaf(r.pad)
	case Symlink:
		more, err = r.afterLeaf(0)
	case Directory:
		more, err = r.firstEntry()
	default:
		return r.root()
	}
	if err != nil {
		return nil, err
	}
	if !more {
		return nil, io.EOF
	}
	return r.entry()
}

// root reads the archive's start and the first node.
func (r *Reader) root() (*Entry, error) {
	b, err := r.take(len(archiveStart + tokOpen + tokType + tokRegular))
	if err != nil {
		if !strings.HasPrefix(archiveStart, string(b[:min(len(b), len(archiveStart))])) {
			return nil, r.errorAt(0, fmt.Errorf("not a NAR: begins with %q", b[:min(len(b), 32)]))
		}
		return nil, err
	}
	if string(b[:len(archiveStart)]) != archiveStart {
		return nil, r.errorAt(0, fmt.Errorf("not a NAR: begins with %q", b[:32]))
	}
	return r.node("", b[len(archiveStart):])
}

// entry reads a directory's entry behind its first word.
func (r *Reader) entry() (*Entry, error) {
	dir := &r.open[len(r.open)-1]
	r.path = r.path[:dir.end]
	b, err := r.take(len(tokOpen+tokName) + 8)
	if err != nil {
		return nil, err
	}
	if err := r.expect(b, tokOpen, tokName); err != nil {
		return nil, err
	}
	size := binary.LittleEndian.Uint64(b[2*wordSize:])
	if size == 0 || size > MaxName {
		return nil, r.errorAt(r.off-8, fmt.Errorf("file name of %d bytes", size))
	}
	at := r.off
	padded := int(size) + int(padding(int64(size)))
	b, err = r.take(padded + len(tokNode+tokOpen+tokType+tokRegular))
	if err != nil {
		return nil, err
	}
	name := string(b[:size])
	if err := checkName(name); err != nil {
		return nil, r.errorAt(at, err)
	}
	if name <= dir.last {
		return nil, r.errorAt(at, fmt.Errorf("file name %q is not in order, behind %q", name, dir.last))
	}
	if !zero(b[size:padded]) {
		return nil, r.errorAt(at+int64(size), errPadding)
	}
	if err := r.expect(b[padded:], tokNode); err != nil {
		return nil, err
	}
	dir.last = name
	path := name
	if r.path != "" {
		path = r.path + "/" + name
	}
	return r.node(path, b[padded+len(tokNode):])
}

// node reads a node of which b, the end of what has been read, holds the first
// words up to wordSize bytes of its type.
func (r *Reader) node(path string, b []byte) (*Entry, error) {
	r.path = path
	start := r.off - int64(len(b))
	if tooDeep(len(r.open)+1, len(path)) {
		return nil, r.errorAt(start, ErrTooDeep)
	}
	if err := r.expect(b, tokOpen, tokType); err != nil {
		return nil, err
	}
	switch kind := string(b[2*wordSize:]); kind {
	case tokRegular:
		return r.regular()
	case tokSymlink:
		return r.symlink()
	case tokDirectory[:wordSize]:
		rest, err := r.take(len(tokDirectory) - wordSize)
		if err != nil {
			return nil, err
		}
		if string(rest) != tokDirectory[wordSize:] {
			return nil, r.errorAt(r.off-int64(len(rest)), errors.New("unknown file type"))
		}
		r.kind = Directory
		r.open = append(r.open, openDir{end: len(path)})
		return &Entry{Path: path, Kind: Directory}, nil
	default:
		return nil, r.errorAt(r.off-wordSize, fmt.Errorf("unknown file type %q", shown(b[2*wordSize:])))
	}
}

// regular reads a regular file's node up to its contents.
func (r *Reader) regular() (*Entry, error) {
	b, err := r.take(len(tokContents) + 8)
	if err != nil {
		return nil, err
	}
	executable := string(b) == tokExecutable
	if executable {
		if b, err = r.take(len(tokEmpty+tokContents) + 8); err != nil {
			return nil, err
		}
		if err := r.expect(b, tokEmpty); err != nil {
			return nil, err
		}
		b = b[len(tokEmpty):]
	}
	if err := r.expect(b, tokContents); err != nil {
		return nil, err
	}
	size := binary.LittleEndian.Uint64(b[len(tokContents):])
	if size > math.MaxInt64/2 {
		return nil, r.errorAt(r.off-8, fmt.Errorf("file of %d bytes is too large", size))
	}
	r.kind = Regular
	r.left = int64(size)
	r.pad = int(padding(r.left))
	return &Entry{Path: r.path, Kind: Regular, Executable: executable, Size: r.left, Offset: r.off}, nil
}

// symlink reads a symbolic link's node up to its end.
func (r *Reader) symlink() (*Entry, error) {
	b, err := r.take(len(tokTarget) + 8)
	if err != nil {
		return nil, err
	}
	if err := r.expect(b, tokTarget); err != nil {
		return nil, err
	}
	size := binary.LittleEndian.Uint64(b[len(tokTarget):])
	if size == 0 || size > MaxTarget {
		return nil, r.errorAt(r.off-8, fmt.Errorf("link target of %d bytes", size))
	}
	at := r.off
	b, err = r.take(int(size) + int(padding(int64(size))))
	if err != nil {
		return nil, err
	}
	target := string(b[:size])
	if err := checkTarget(target); err != nil {
		return nil, r.errorAt(at, err)
	}
	if !zero(b[size:]) {
		return nil, r.errorAt(at+int64(size), errPadding)
	}
	r.kind = Symlink
	return &Entry{Path: r.path, Kind: Symlink, Target: target}, nil
}

// afterLeaf reads what stands behind a node that is no directory, pad bytes of
// padding first, and tells whether an entry follows or the archive is at its end.
func (r *Reader) afterLeaf(pad int) (more bool, err error) {
	n := pad + len(tokClose)
	if len(r.open) > 0 {
		n += len(tokClose + tokEntry)
	}
	b, err := r.take(n)
	if err != nil {
		return false, err
	}
	if !zero(b[:pad]) {
		return false, r.errorAt(r.off-int64(n), errPadding)
	}
	if len(r.open) == 0 {
		return false, r.expect(b[pad:], tokClose)
	}
	if err := r.expect(b[pad:], tokClose, tokClose); err != nil {
		return false, err
	}
	more, err = r.isEntry(b[n-wordSize:])
	if err == nil && !more {
		return r.leave()
	}
	return more, err
}

// leave ends the innermost directory, whose closing word has been read, and
// every one that ends with it.
func (r *Reader) leave() (more bool, err error) {
	for {
		r.open = r.open[:len(r.open)-1]
		if len(r.open) == 0 {
			return false, nil
		}
		r.path = r.path[:r.open[len(r.open)-1].end]
		b, err := r.take(len(tokClose + tokEntry))
		if err != nil {
			return false, err
		}
		if err := r.expect(b, tokClose); err != nil {
			return false, err
		}
		more, err := r.isEntry(b[len(tokClose):])
		if more || err != nil {
			return more, err
		}
	}
}

// firstEntry reads the first word of a directory.
func (r *Reader) firstEntry() (more bool, err error) {
	b, err := r.take(wordSize)
	if err != nil {
		return false, err
	}
	more, err = r.isEntry(b)
	if err == nil && !more {
		return r.leave()
	}
	return more, err
}

// isEntry tells whether the word b, the last one read, begins an entry or ends
// the directory.
func (r *Reader) isEntry(b []byte) (bool, error) {
	switch string(b) {
	case tokEntry:
		return true, nil
	case tokClose:
		return false, nil
	}
	return false, r.errorAt(r.off-wordSize, fmt.Errorf("expected \"entry\" or \")\", got %q", shown(b)))
}

// Read reads from the contents of the current node, io.EOF at their end.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil && r.err != io.EOF {
		return 0, r.err
	}
	if r.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.src.Read(p)
	r.off += int64(n)
	r.left -= int64(n)
	if err == nil || r.left == 0 {
		return n, nil // an error of the stream comes again where more of it is read
	}
	r.err = r.readError(err)
	return n, r.err
}

// WriteTo writes what is left of the contents of the current node to w.
func (r *Reader) WriteTo(w io.Writer) (int64, error) {
	var written int64
	for r.left > 0 {
		n, err := r.Read(r.scratch())
		if n > 0 {
			m, err := w.Write(r.chunk[:n])
			written += int64(m)
			if err != nil {
				return written, err
			}
			if m < n {
				return written, io.ErrShortWrite
			}
		}
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// skip reads past what is left of the contents.
func (r *Reader) skip() error {
	if d, ok := r.src.(interface{ Discard(int) (int, error) }); ok {
		for r.left > 0 {
			n, err := d.Discard(int(min(r.left, math.MaxInt32)))
			r.off += int64(n)
			r.left -= int64(n)
			if err != nil {
				return r.readError(err)
			}
		}
	}
	for r.left > 0 {
		if _, err := r.Read(r.scratch()); err != nil {
			return err
		}
	}
	return nil
}

// scratch returns a buffer that suits the contents that are left.
func (r *Reader) scratch() []byte {
	if want := int(min(r.left, chunkSize)); len(r.chunk) < want {
		r.chunk = make([]byte, want)
	}
	return r.chunk
}

// take reads n bytes that the archive must have. They are valid until the next
// call, also those that came before an error.
func (r *Reader) take(n int) ([]byte, error) {
	got, err := io.ReadFull(r.src, r.buf[:n])
	r.off += int64(got)
	if err != nil {
		return r.buf[:got], r.readError(err)
	}
	return r.buf[:n], nil
}

// readError makes a stream's end inside of the archive a *FormatError.
func (r *Reader) readError(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return r.errorAt(r.off, io.ErrUnexpectedEOF)
	}
	return err
}

// failed reports whether the stream failed, and not the archive.
func (r *Reader) failed() bool {
	var format *FormatError
	return r.err != nil && r.err != io.EOF && !errors.As(r.err, &format)
}

// expect compares the words with the beginning of b, which reaches to where the
// stream stands.
func (r *Reader) expect(b []byte, words ...string) error {
	for _, word := range words {
		if string(b[:len(word)]) != word {
			return r.errorAt(r.off-int64(len(b)), fmt.Errorf("expected %q, got %q", shown([]byte(word)), shown(b[:len(word)])))
		}
		b = b[len(word):]
	}
	return nil
}

func (r *Reader) errorAt(offset int64, err error) error {
	return &FormatError{Offset: offset, Path: r.path, Err: err}
}

var errPadding = errors.New("padding is not zero")

// zero tells whether b consists of zeros.
func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// depth returns the number of directories around the node e, the current one.
func (r *Reader) depth(e *Entry) int {
	if e.Kind == Directory {
		return len(r.open) - 1
	}
	return len(r.open)
}

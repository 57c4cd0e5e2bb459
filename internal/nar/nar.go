// Package nar reads and writes Nix archives, and turns file system trees into
// archives and back. FORMAT.md beside this file describes the format and what a
// reader must reject.
//
// Streams come from elsewhere and are hostile until read: a Reader accepts
// exactly the archives that Nix writes, byte for byte, in constant memory, and
// never reads beyond the archive's last byte.
package nar

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
)

// Limits on what an archive may contain. No Nix takes more.
const (
	MaxName   = 255  // bytes of a directory entry's name
	MaxTarget = 4095 // bytes of a symbolic link's target
	MaxDepth  = 64   // nodes from the root to one whose path is longer than MaxPath, both counted
	MaxPath   = 4096 // bytes of the path of a node that lies deeper
)

// tooDeep reports whether a node may not lie as deep as that, its path from the root being
// that long. Nix up to 2.33 ends where the system ends, later versions at 64 levels.
func tooDeep(depth, path int) bool { return depth > MaxDepth && path > MaxPath }

// A Kind is the type of a node.
type Kind uint8

const (
	Regular Kind = iota + 1
	Directory
	Symlink
)

// String returns Nix's word for the kind.
func (k Kind) String() string {
	switch k {
	case Regular:
		return "regular"
	case Directory:
		return "directory"
	case Symlink:
		return "symlink"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// An Entry describes a node of an archive.
type Entry struct {
	// Path is relative to the root, with slashes between names; the root's is
	// empty. Names are any bytes but slash and NUL: not always UTF-8.
	Path       string
	Kind       Kind
	Executable bool   // of a Regular
	Size       int64  // bytes of contents, of a Regular
	Target     string // of a Symlink: any bytes but NUL
	Offset     int64  // where a Regular's contents begin in the archive
}

// Name returns the last element of the path; the root's is empty.
func (e *Entry) Name() string {
	return e.Path[strings.LastIndexByte(e.Path, '/')+1:]
}

var (
	// ErrSpecial says that a file is a socket, a device or a named pipe: those
	// have no place in an archive.
	ErrSpecial = errors.New("not a regular file, directory or symbolic link")

	// ErrChanged says that a file changed while it was read.
	ErrChanged = errors.New("file changed while it was read")

	// ErrTooDeep says that a node is nested deeper than MaxDepth and MaxPath allow.
	ErrTooDeep = fmt.Errorf("nested deeper than %d levels, with a path of more than %d bytes", MaxDepth, MaxPath)
)

// A FormatError says where a stream is not an archive. An archive that ends
// too early wraps io.ErrUnexpectedEOF.
type FormatError struct {
	Offset int64  // bytes from the start of the archive
	Path   string // the node that was being read, as in Entry; foreign bytes
	Err    error  // what is wrong; foreign text in it is quoted
}

func (e *FormatError) Error() string {
	if e.Path == "" {
		return fmt.Sprintf("malformed NAR at byte %d: %v", e.Offset, e.Err)
	}
	return fmt.Sprintf("malformed NAR at byte %d, in %s: %v", e.Offset, printable(e.Path), e.Err)
}

func (e *FormatError) Unwrap() error { return e.Err }

// printable returns path as it is if a terminal may see it, else quoted.
func printable(path string) string {
	if q := strconv.Quote(path); q[1:len(q)-1] != path || strings.Contains(path, " ") {
		return q
	}
	return path
}

// pathError names the file in whose course err came up.
func pathError(op, path string, err error) error {
	return &fs.PathError{Op: op, Path: printable(path), Err: err}
}

// checkName tells whether name may stand in a directory.
func checkName(name string) error {
	switch {
	case name == "", name == ".", name == "..", strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("invalid file name %q", name)
	case len(name) > MaxName:
		return fmt.Errorf("file name of %d bytes is longer than %d", len(name), MaxName)
	}
	return nil
}

// checkTarget tells whether a symbolic link may have the target.
func checkTarget(target string) error {
	switch {
	case target == "", strings.Contains(target, "\x00"):
		return fmt.Errorf("invalid link target %q", target)
	case len(target) > MaxTarget:
		return fmt.Errorf("link target of %d bytes is longer than %d", len(target), MaxTarget)
	}
	return nil
}

// Copy copies one archive from r to w, checking its structure, and returns the
// number of bytes written. It reads r to the archive's last byte and not beyond.
// Its memory is constant; r should be buffered. What a failed Copy has written
// is the beginning of the archive up to about the place of the error.
func Copy(w io.Writer, r io.Reader) (int64, error) {
	t := &tee{r: r, w: w}
	n := NewReader(t)
	for {
		_, err := n.Next()
		switch {
		case t.writeErr != nil:
			return t.written, t.writeErr
		case err == io.EOF:
			return t.written, t.flush()
		case err != nil:
			return t.written, errors.Join(err, t.flush())
		}
	}
}

// A tee writes what is read through it, small pieces together.
type tee struct {
	r        io.Reader
	w        io.Writer
	buf      []byte
	written  int64
	writeErr error
}

func (t *tee) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if len(t.buf)+n > chunkSize {
		if t.flush() != nil {
			return 0, t.writeErr
		}
	}
	if n >= chunkSize/8 {
		if t.flush() != nil || t.write(p[:n]) != nil {
			return 0, t.writeErr
		}
		return n, err
	}
	t.buf = append(t.buf, p[:n]...)
	return n, err
}

func (t *tee) flush() error {
	if len(t.buf) == 0 {
		return t.writeErr
	}
	err := t.write(t.buf)
	t.buf = t.buf[:0]
	return err
}

func (t *tee) write(p []byte) error {
	if t.writeErr != nil {
		return t.writeErr
	}
	n, err := t.w.Write(p)
	t.written += int64(n)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	t.writeErr = err
	return err
}

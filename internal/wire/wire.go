// Package wire reads and writes the primitives of Nix's protocols: unsigned
// 64-bit little-endian integers, strings padded to eight bytes, lists of those,
// and the framed substream. A limit stands before every allocation.
package wire

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// Limits on what is read from the other side.
const (
	MaxPath       = 4096      // bytes of a store path or another file name
	MaxText       = 1 << 20   // bytes of an error message
	MaxField      = 1 << 16   // bytes of a hash, content address, signature, option
	MaxReferences = 1 << 16   // references of a path
	MaxSignatures = 1 << 20   // signatures of a path, of which most are dropped
	MaxPaths      = 1 << 22   // paths in a closure
	MaxList       = 16 << 20  // bytes of the texts in a list
	MaxPathList   = 256 << 20 // bytes of the paths in a list
)

// pathChunk is the number of paths that EachPaths keeps at once.
const pathChunk = 4096

const bufferSize = 64 << 10

// A FormatError says that the other side sent what its protocol does not allow.
type FormatError struct{ Msg string }

func (e *FormatError) Error() string { return e.Msg }

func formatErrorf(format string, args ...any) error {
	return &FormatError{fmt.Sprintf(format, args...)}
}

// A Reader decodes a stream. Its first error sticks: every later call returns a
// zero value, and Err tells what went wrong. The end of the stream is io.EOF
// where nothing of a value was read yet, and io.ErrUnexpectedEOF inside one.
// A Reader may be used by one goroutine at a time.
type Reader struct {
	buf     *bufio.Reader
	err     error
	scratch []byte // for short strings
}

// NewReader returns a Reader with a buffer of its own; nobody else may read from r.
func NewReader(r io.Reader) *Reader {
	return &Reader{buf: bufio.NewReaderSize(r, bufferSize)}
}

// Err returns the first error.
func (r *Reader) Err() error { return r.err }

// Fail makes err the first error, unless there is one.
func (r *Reader) Fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// Buffered returns the number of bytes that can be read without waiting.
func (r *Reader) Buffered() int { return r.buf.Buffered() }

// Raw returns the stream below, for what is not made of primitives.
// What is read from it is gone from the Reader.
func (r *Reader) Raw() *bufio.Reader { return r.buf }

// Uint64 reads an integer.
func (r *Reader) Uint64() uint64 {
	if r.err != nil {
		return 0
	}
	var b [8]byte
	if _, err := io.ReadFull(r.buf, b[:]); err != nil {
		r.err = err
		return 0
	}
	return binary.LittleEndian.Uint64(b[:])
}

// Int64 reads an integer that must not exceed the largest int64.
func (r *Reader) Int64() int64 {
	n := r.Uint64()
	if n > 1<<63-1 {
		r.Fail(formatErrorf("integer %d is too large", n))
		return 0
	}
	return int64(n)
}

// Bool reads a truth value; as in Nix every integer but zero is true.
func (r *Reader) Bool() bool { return r.Uint64() != 0 }

// Count reads the number of elements of a list, which may not exceed limit.
func (r *Reader) Count(limit int) int {
	n := r.Uint64()
	if n > uint64(limit) {
		r.Fail(formatErrorf("list of %d elements is longer than %d", n, limit))
		return 0
	}
	return int(n)
}

// String reads a string of at most limit bytes.
func (r *Reader) String(limit int) string {
	n := r.Uint64()
	if n > uint64(limit) {
		r.Fail(formatErrorf("string of %d bytes is longer than %d", n, limit))
	}
	if r.err != nil {
		return ""
	}
	b, err := r.padded((int(n) + 7) &^ 7)
	if err != nil {
		r.err = unexpected(err)
		return ""
	}
	for _, c := range b[n:] {
		if c != 0 {
			r.err = formatErrorf("string has non-zero padding")
			return ""
		}
	}
	return string(b[:n])
}

// padded reads n bytes, which the next call overwrites. Memory for long strings is taken
// as they arrive.
func (r *Reader) padded(n int) ([]byte, error) {
	if n > MaxField {
		var long bytes.Buffer
		_, err := io.CopyN(&long, r.buf, int64(n))
		return long.Bytes(), err
	}
	if n > len(r.scratch) {
		r.scratch = make([]byte, max(n, 512))
	}
	_, err := io.ReadFull(r.buf, r.scratch[:n])
	return r.scratch[:n], err
}

// Strings reads a list of strings, of at most MaxList bytes together.
func (r *Reader) Strings(maxCount, maxLen int) []string {
	n := r.Count(maxCount)
	var list []string
	size := 0
	for range n {
		s := r.String(maxLen)
		if size += len(s); size > MaxList {
			r.Fail(formatErrorf("list of strings is longer than %d MiB", MaxList>>20))
		}
		if r.err != nil {
			r.err = unexpected(r.err)
			return nil
		}
		list = append(list, s)
	}
	return list
}

// Signatures reads a list of signatures and drops those that are malformed or too many; see
// nix.AppendSignature.
func (r *Reader) Signatures() (sigs []string) {
	for range r.Count(MaxSignatures) {
		sig := r.String(MaxField)
		if r.err != nil {
			r.err = unexpected(r.err)
			return nil
		}
		sigs = nix.AppendSignature(sigs, sig)
	}
	return sigs
}

// Path reads a store path of dir.
func (r *Reader) Path(dir nix.StoreDir) nix.StorePath {
	p, err := dir.Parse(r.String(MaxPath))
	if r.err == nil && err != nil {
		r.err = formatErrorf("%v", err)
	}
	if r.err != nil {
		return nix.StorePath{}
	}
	return p
}

// OptionalPath reads a store path of dir, or an empty string as the zero path.
func (r *Reader) OptionalPath(dir nix.StoreDir) nix.StorePath {
	s := r.String(MaxPath)
	if s == "" {
		return nix.StorePath{}
	}
	p, err := dir.Parse(s)
	if err != nil {
		r.Fail(formatErrorf("%v", err))
	}
	return p
}

// Paths reads a list of at most limit store paths, of at most MaxPathList bytes together.
func (r *Reader) Paths(dir nix.StoreDir, limit int) []nix.StorePath {
	var list []nix.StorePath
	size := 0
	r.eachPath(dir, limit, func(p nix.StorePath) {
		if size += len(p.String()); size > MaxPathList {
			r.Fail(formatErrorf("list of paths is longer than %d MiB", MaxPathList>>20))
		}
		list = append(list, p)
	})
	if r.err != nil {
		return nil
	}
	return list
}

// EachPaths reads a list of at most limit store paths and calls use with some of them at a
// time. The slice is use's only until it returns.
func (r *Reader) EachPaths(dir nix.StoreDir, limit int, use func([]nix.StorePath)) {
	var some []nix.StorePath
	r.eachPath(dir, limit, func(p nix.StorePath) {
		if some = append(some, p); len(some) == pathChunk {
			use(some)
			some = some[:0]
		}
	})
	if r.err == nil && len(some) > 0 {
		use(some)
	}
}

func (r *Reader) eachPath(dir nix.StoreDir, limit int, use func(nix.StorePath)) {
	for range r.Count(limit) {
		p := r.Path(dir)
		if r.err != nil {
			r.err = unexpected(r.err)
			return
		}
		use(p)
	}
}

// unexpected turns a clean end into one inside a value.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// A Writer encodes into a buffer; Flush hands it on. Its first error sticks.
// A Writer may be used by one goroutine at a time.
type Writer struct {
	buf *bufio.Writer
}

// NewWriter returns a Writer onto w.
func NewWriter(w io.Writer) *Writer {
	return &Writer{bufio.NewWriterSize(w, bufferSize)}
}

// Write appends bytes as they are.
func (w *Writer) Write(p []byte) (int, error) { return w.buf.Write(p) }

// Flush writes what is buffered and returns the first error of all writes.
func (w *Writer) Flush() error { return w.buf.Flush() }

// Uint64 appends an integer.
func (w *Writer) Uint64(n uint64) {
	w.buf.Write(binary.LittleEndian.AppendUint64(w.buf.AvailableBuffer(), n))
}

// Bool appends 0 or 1.
func (w *Writer) Bool(b bool) {
	if b {
		w.Uint64(1)
	} else {
		w.Uint64(0)
	}
}

// String appends a string with its padding.
func (w *Writer) String(s string) {
	w.Uint64(uint64(len(s)))
	w.buf.WriteString(s)
	var zero [8]byte
	w.buf.Write(zero[:-len(s)&7])
}

// Strings appends a list of strings.
func (w *Writer) Strings(list []string) {
	w.Uint64(uint64(len(list)))
	for _, s := range list {
		w.String(s)
	}
}

// Path appends a store path; the zero path is an empty string.
func (w *Writer) Path(p nix.StorePath) { w.String(p.String()) }

// Paths appends a list of store paths.
func (w *Writer) Paths(list []nix.StorePath) {
	w.Uint64(uint64(len(list)))
	for _, p := range list {
		w.Path(p)
	}
}

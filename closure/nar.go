package closure

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"golang.org/x/time/rate"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/progress"
)

// A checkedNAR passes a NAR on: counted, slowed down where a limit is set, and
// compared with its path info when written out.
type checkedNAR struct {
	ctx   context.Context
	nar   NAR
	info  *nix.PathInfo
	meter *progress.Meter
	limit *rate.Limiter
	count func(n int) // is told of n further bytes

	unhashed bool  // the destination hashes it
	passed   int64 // bytes
	partial  bool  // the source has made it of what the destination has
}

// A sourceError is that of the source, where a NAR was read and written at once.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// WriteTo writes the NAR to w. The error says so if it is not the one that its
// path info promises, as far as that is to be found out here; w has had most or all of
// it then.
func (n *checkedNAR) WriteTo(w io.Writer) (int64, error) {
	out := &narWriter{checkedNAR: n, w: w}
	if !n.unhashed {
		out.hash = sha256.New()
	}
	_, err := n.nar.WriteTo(out)
	if out.size > n.info.NARSize {
		err = nil // it is our own, of a NAR that is too long
	}
	if err != nil {
		return out.size, err
	}
	if err := n.info.CheckNAR(out.sum(), out.size); err != nil {
		return out.size, fmt.Errorf("%s: %w", n.info.Path, err)
	}
	return out.size, nil
}

// Close does nothing: whoever opened the NAR closes it.
func (n *checkedNAR) Close() error { return nil }

// Reader returns the NAR as a stream that its reader must check.
func (n *checkedNAR) Reader() io.Reader { return &narReader{n, n.nar.Reader()} }

// pass accounts for size bytes.
func (n *checkedNAR) pass(size int) error {
	n.meter.Bytes(size)
	n.passed += int64(size)
	n.count(size)
	if n.limit == nil {
		return context.Cause(n.ctx)
	}
	for size > 0 {
		part := min(size, n.limit.Burst())
		if err := n.limit.WaitN(n.ctx, part); err != nil {
			return err
		}
		size -= part
	}
	return nil
}

type narWriter struct {
	*checkedNAR
	w    io.Writer
	hash hash.Hash // nil where it is not wanted
	size int64
}

func (w *narWriter) Write(p []byte) (int, error) {
	if err := w.pass(len(p)); err != nil {
		return 0, err
	}
	if w.hash != nil {
		w.hash.Write(p)
	}
	w.size += int64(len(p))
	if w.size > w.info.NARSize {
		return 0, errTooLong
	}
	return w.w.Write(p)
}

// errTooLong ends the reading of a NAR that has more bytes than its path info says.
var errTooLong = errors.New("NAR is too long")

// sum returns the hash, or the one that is promised where nothing was hashed.
func (w *narWriter) sum() nix.Hash {
	if w.hash == nil {
		return w.info.NARHash
	}
	return nix.SHA256Hash([sha256.Size]byte(w.hash.Sum(nil)))
}

type narReader struct {
	*checkedNAR
	r io.Reader
}

func (r *narReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if passErr := r.pass(n); passErr != nil {
		err = passErr
	}
	if err != nil && err != io.EOF {
		err = &sourceError{err}
	}
	return n, err
}

package remote

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// A Lane is one session of a far store, through which NARs go one after another.
// One goroutine may add, or one request while another takes.
type Lane struct {
	c       *conn
	dialect laneDialect

	mu      sync.Mutex
	pending []*Delivery // requested, not yet taken
}

// A laneDialect is how paths go through sessions of a protocol.
type laneDialect interface {
	// add sends one path; the contract is that of Lane.Add.
	add(ctx context.Context, c *conn, info *nix.PathInfo, nar io.WriterTo, done func(error)) error
	// request asks for a path's NAR, which d gets.
	request(ctx context.Context, c *conn, info *nix.PathInfo, d *Delivery) error
}

// Add sends one path and returns when its NAR, which nar writes, is handed to the
// session; done is called once, later, with nil when the far end has registered
// the path. References must be valid there, or ahead of the path in this lane.
// After an error of Add the lane is of no more use.
func (l *Lane) Add(ctx context.Context, info *nix.PathInfo, nar io.WriterTo, done func(error)) error {
	return l.dialect.add(ctx, l.c, info, nar, done)
}

// add implements laneDialect.
func (s *Store) add(ctx context.Context, c *conn, info *nix.PathInfo, nar io.WriterTo, done func(error)) error {
	if err := s.Greet(ctx); err != nil { // its version decides on the request
		done(err)
		return err
	}
	k := &call{
		what: "send " + info.Path.String(),
		read: readAcknowledgement,
		done: done,
	}
	return c.send(k, false, func(w *wire.Writer) error {
		if s.first.version < serveAddNAR {
			return writeImport(w, info, nar)
		}
		writeAdd(w, info)
		return writeNAR(w, info, nar)
	})
}

// Lookahead is how many bytes of NARs to request ahead: what one SSH channel can
// hold, twice.
func (l *Lane) Lookahead() int64 { return 4 << 20 }

// Abort ends the session at once; whoever waits for it gets an error.
func (l *Lane) Abort() {
	if s, ok := l.c.stream.(aborter); ok {
		s.Abort()
	} else {
		l.c.stream.Close()
	}
}

// An aborter is a stream that can be ended without waiting for the far program.
type aborter interface{ Abort() }

// Flush hands on what is buffered. It must be called before waiting for done.
func (l *Lane) Flush() error { return l.c.flush() }

func readAcknowledgement(r *wire.Reader) error {
	if ok := r.Uint64(); r.Err() == nil && ok != 1 {
		return &wire.FormatError{Msg: fmt.Sprintf("it acknowledges with %d", ok)}
	}
	return r.Err()
}

// writeAdd writes AddToStoreNar up to the NAR.
func writeAdd(w *wire.Writer, info *nix.PathInfo) {
	w.Uint64(cmdAddToStoreNar)
	w.Path(info.Path)
	writeInfo(w, info)
}

// writeInfo writes what the fields of a path info are when a path is added.
func writeInfo(w *wire.Writer, info *nix.PathInfo) {
	w.Path(info.Deriver)
	w.String(info.NARHash.Hex())
	w.Paths(info.References)
	w.Uint64(unixTime(info.Registered))
	w.Uint64(uint64(info.NARSize))
	w.Bool(false) // ultimate: local trust is not for others
	w.Strings(info.Signatures)
	w.String(info.CA)
}

func unixTime(t time.Time) uint64 {
	if t.IsZero() || t.Unix() < 0 {
		return 0
	}
	return uint64(t.Unix())
}

// fromUnix is the inverse of unixTime.
func fromUnix(seconds int64) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.Unix(seconds, 0)
}

// exportMagic stands behind the NAR of an entry of an export stream.
const exportMagic = 0x4558494e

// writeImport sends one path to a server older than 2.5, as an export stream.
func writeImport(w *wire.Writer, info *nix.PathInfo, nar io.WriterTo) error {
	w.Uint64(cmdImportPaths)
	w.Uint64(1)
	if err := writeNAR(w, info, nar); err != nil {
		return err
	}
	w.Uint64(exportMagic)
	w.Path(info.Path)
	w.Paths(info.References)
	w.Path(info.Deriver)
	w.Uint64(0)
	w.Uint64(0)
	return nil
}

// writeNAR copies a NAR, which must have the size that was announced.
func writeNAR(w io.Writer, info *nix.PathInfo, nar io.WriterTo) error {
	out := &narOutput{w: w, left: info.NARSize}
	_, err := nar.WriteTo(out)
	switch {
	case out.err != nil:
		return out.err
	case err != nil:
		return &sourceError{err}
	case out.left != 0:
		return &sourceError{&nix.SizeMismatchError{Got: info.NARSize - out.left, Want: info.NARSize}}
	}
	return nil
}

// A narOutput passes on at most as many bytes as were announced, and remembers
// whether an error was the session's.
type narOutput struct {
	w    io.Writer
	left int64
	err  error
}

func (o *narOutput) Write(p []byte) (int, error) {
	if int64(len(p)) > o.left {
		return 0, fmt.Errorf("NAR is longer than its path info says")
	}
	n, err := o.w.Write(p)
	o.left -= int64(n)
	o.err = err
	return n, err
}

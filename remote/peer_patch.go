package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/copy-closure/copy-closure/internal/delta"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// A Patch is what can be sent of a path in place of its NAR.
type Patch struct {
	Base   nix.StorePath // which the far end offered
	Encode Encoder
	Whole  io.WriterTo // the NAR again, later and on any goroutine, where the delta did not do
}

// An Encoder writes to w the delta that makes what it reads from nar of a base. It
// reads nar to its end.
type Encoder func(w io.Writer, nar io.Reader) error

// ErrDelta is that of a path whose delta did not work at the far end where it is too late
// for the whole: what came behind it may refer to it.
var ErrDelta = errors.New("the delta did not make the path at the far end")

// AddPatch is Add with a delta. The whole NAR follows, after AddPatch has returned, where
// the delta is no shorter or does not work at the far end. In order, it follows at once,
// or the path fails with ErrDelta.
func (c *Channel) AddPatch(ctx context.Context, info *nix.PathInfo, patch Patch, nar io.WriterTo, done func(error)) error {
	number, err := c.p.expect(&peerAdd{path: info.Path, done: done, again: func(number uint64) {
		c.p.sendWhole(number, info, patch.Whole)
	}})
	if err != nil {
		return err
	}
	fields := appendUvarint(slices.Clone(c.out.channel), number)
	fields = appendPathInfo(appendPath(fields, patch.Base), info)
	if err := c.p.out.send(msgPatch, fields, nil); err != nil {
		return &abandonedError{err}
	}
	c.out.begin(info.NARSize)
	readErr, err := encodeNAR(c.out, patch.Encode, nar)
	switch {
	case c.out.err != nil:
		return &abandonedError{c.out.err}
	case readErr != nil:
		c.out.abort("the sender could not read it")
		c.p.forget(number)(readErr)
		return readErr
	case err != nil:
		c.out.abort("no delta can be made")
		if !c.p.InOrder() {
			return nil // the far end finds that it does not work, and asks for the whole
		}
		c.p.mu.Lock()
		if add := c.p.adds[number]; add != nil {
			add.again = nil
		}
		c.p.mu.Unlock()
		return c.send(number, info, 0, patch.Whole)
	}
	if err := c.out.end(); err != nil {
		return &abandonedError{err}
	}
	return nil
}

// encodeNAR returns what went wrong with the NAR, and with the delta.
func encodeNAR(w io.Writer, encode Encoder, nar io.WriterTo) (readErr, err error) {
	r, pipe := io.Pipe()
	read := make(chan error, 1)
	go func() {
		_, err := nar.WriteTo(pipe)
		pipe.CloseWithError(err)
		read <- err
	}()
	err = encode(w, r)
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	r.CloseWithError(errGivenUp)
	if readErr = <-read; errors.Is(readErr, errGivenUp) {
		readErr = nil
	}
	return readErr, err
}

var errGivenUp = errors.New("the delta is given up")

// takeWhole sends a path again, as a whole.
func (p *Peer) takeWhole(m message) error {
	number := m.payload.uvarint(1<<63 - 1)
	if err := m.payload.end(); err != nil {
		return err
	}
	p.mu.Lock()
	add := p.adds[number]
	var again func(uint64)
	if add != nil {
		again, add.again = add.again, nil
	}
	switch {
	case again == nil:
	case p.InOrder():
		delete(p.adds, number)
	case !p.ended:
		p.resending.Go(func() { again(number) })
	}
	p.mu.Unlock()
	if again == nil {
		return &wire.FormatError{Msg: "it asks for the whole of a path that it was sent as a whole"}
	}
	if p.InOrder() {
		add.done(fmt.Errorf("send %s: %w", add.path, ErrDelta))
		p.tellIfDecided()
	}
	return nil
}

// sendWhole sends a path under the number that it had before, in a channel for such.
func (p *Peer) sendWhole(number uint64, info *nix.PathInfo, nar io.WriterTo) {
	p.spare.Lock()
	defer p.spare.Unlock()
	if p.spareChannel == nil {
		var err error
		if p.spareChannel, err = p.OpenChannel(); err != nil {
			p.forget(number)(err)
			return
		}
	}
	if p.spareChannel.send(number, info, 0, nar) == nil { // else the path has the error, or the bundle
		p.out.flush()
	}
}

// Signature asks for the signature of base, as it is with the references of info. It is
// read, as a NAR would be, in the order in which requests were made in this channel.
func (c *Channel) Signature(base nix.StorePath, info *nix.PathInfo) error {
	c.want(delta.MaxSignatureSize)
	fields := appendPathInfo(appendPath(slices.Clone(c.out.channel), base), info)
	return c.p.out.sendNow(msgSign, fields)
}

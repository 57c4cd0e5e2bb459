package remote

import (
	"bufio"
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/copy-closure/copy-closure/internal/delta"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// MaxRequestSignature is the size, in bytes, of the longest signature that may go with a
// request: that of a base of some gigabytes.
const MaxRequestSignature = 1 << 20

// What an answer to a request for an update begins with.
const (
	answersNAR   = 0
	answersDelta = 1
)

// RequestUpdate is Request for a path of which an older one, base, is at both ends. What
// comes is a NAR or a delta: see Arrival.IsDelta. With always it is a delta also where the
// link is faster than the far end computes one.
func (c *Channel) RequestUpdate(info *nix.PathInfo, base nix.StorePath, always bool) error {
	c.want(info.NARSize + 1)
	fields := appendPathInfo(appendPath(slices.Clone(c.out.channel), base), info)
	return c.p.out.sendNow(msgUpdate, appendBool(fields, always))
}

func appendBool(b []byte, yes bool) []byte {
	if yes {
		return append(b, 1)
	}
	return append(b, 0)
}

// RequestUpdateOf is RequestUpdate for a base that is at this end only. sign writes its
// signature, of at most MaxRequestSignature bytes; where it cannot, the NAR will come.
func (c *Channel) RequestUpdateOf(info *nix.PathInfo, sign func(w io.Writer) error, always bool) error {
	c.want(info.NARSize + 1)
	fields := appendBool(appendPathInfo(slices.Clone(c.out.channel), info), always)
	if err := c.p.out.send(msgSigned, fields, nil); err != nil {
		return err
	}
	c.out.begin(MaxRequestSignature)
	if err := sign(c.out); err != nil {
		c.out.abort("there is no signature")
	} else {
		c.out.end()
	}
	c.p.out.flush()
	return c.out.err
}

// IsDelta reads what an update is. It is called before Reader and WriteTo.
func (a *Arrival) IsDelta() (bool, error) {
	var answer [1]byte
	if _, err := io.ReadFull(a.in, answer[:]); err != nil {
		return false, unexpectedEnd(err)
	}
	if answer[0] > answersDelta {
		return false, &wire.FormatError{Msg: "it sends something else than a NAR or a delta"}
	}
	return answer[0] == answersDelta, nil
}

// takeCommon tells which paths are here as well, and holds them.
func (p *peerServer) takeCommon(ctx context.Context, m message) error {
	var bases []Base
	for range m.payload.count(maxAsked) {
		bases = append(bases, Base{m.payload.path(p.dir), m.payload.hash()})
	}
	if err := m.payload.end(); err != nil {
		return err
	}
	here, err := p.holdBases(ctx, bases)
	if err != nil {
		p.options.Logger.Warn("no bases for deltas", "error", err)
	}
	var fields []byte
	for _, base := range bases {
		fields = appendBool(fields, here[base])
	}
	return p.out.sendNow(msgThere, fields)
}

// holdBases returns those that are here, which may be used from now on.
func (p *peerServer) holdBases(ctx context.Context, bases []Base) (map[Base]bool, error) {
	if _, ok := p.backend.(BaseBackend); !ok {
		return nil, nil
	}
	paths := make([]nix.StorePath, len(bases))
	for i, base := range bases {
		paths[i] = base.Path
	}
	paths, err := p.backend.ValidPaths(ctx, sortedPaths(paths))
	if err == nil {
		err = p.backend.Hold(ctx, paths)
	}
	if err != nil {
		return nil, err
	}
	infos, err := p.backend.PathInfos(ctx, paths)
	here := make(map[Base]bool)
	p.bases.mu.Lock()
	defer p.bases.mu.Unlock()
	for _, info := range infos {
		if p.bases.add(info) {
			here[Base{info.Path, info.NARHash}] = true
		}
	}
	return here, err
}

func (p *peerServer) takeUpdate(ctx context.Context, m message) error {
	channel := m.payload.channelNumber()
	i := item{kind: m.kind}
	if m.kind == msgUpdate {
		i.base = m.payload.path(p.dir)
	}
	i.info = m.payload.pathInfo(p.dir)
	i.always = m.payload.uvarint(1) == 1
	if err := m.payload.end(); err != nil {
		return err
	}
	if m.kind == msgSigned && p.taking[channel] != nil {
		return &wire.FormatError{Msg: "a signature comes in a channel for NARs"}
	}
	if err := p.request(ctx, channel, i); err != nil {
		return err
	}
	p.signing[channel] = m.kind == msgSigned
	return nil
}

// giveUpdate sends a delta, or the whole where none can be had.
func (p *peerServer) giveUpdate(ctx context.Context, out *channelWriter, in *inbox, i item) error {
	encode, done, err := p.encoder(ctx, in, i)
	if err == nil && !p.keepsUp(i) {
		err = errors.Join(errors.New("the link is faster"), done())
	}
	if err != nil {
		p.options.Logger.Debug("no delta", "path", i.info.Path, "reason", err)
		out.begin(i.info.NARSize + 1)
		out.Write([]byte{answersNAR})
		return p.give(ctx, out, i)
	}
	defer done()
	release, err := p.memory.Reserve(ctx, i.info.NARSize)
	if err != nil {
		return err
	}
	defer release()
	p.pace.Begin(time.Now())
	defer func() { p.pace.End(time.Now(), i.info.NARSize) }()
	out.begin(i.info.NARSize)
	out.Write([]byte{answersDelta})
	readErr, err := encodeNAR(out, encode, backendNAR{ctx, p.backend, i.info.Path})
	if err := errors.Join(readErr, err); err != nil {
		return err
	}
	return out.end()
}

// keepsUp reports whether a delta is wanted in any case, or likely to be made before the
// link has taken the whole.
func (p *peerServer) keepsUp(i item) bool { return i.always || p.pace.Keeps(p.out.linkRate()) }

// encoder returns what computes the delta that i asks for.
func (p *peerServer) encoder(ctx context.Context, in *inbox, i item) (_ Encoder, done func() error, err error) {
	if i.kind == msgUpdate {
		archive, mapping, err := p.openBase(ctx, i.base, i.info)
		if err != nil {
			return nil, nil, err
		}
		return func(w io.Writer, nar io.Reader) error {
			_, err := delta.Encode(w, archive, mapping, nar, delta.Options{})
			return err
		}, archive.Close, nil
	}
	in.begin()
	signature, err := delta.ReadSignature(bufio.NewReader(io.LimitReader(in, MaxRequestSignature)))
	if _, skipErr := in.skip(); err == nil {
		err = skipErr
	}
	return func(w io.Writer, nar io.Reader) error {
		_, err := delta.EncodeAgainst(w, signature, nar, delta.Options{})
		return err
	}, func() error { return nil }, err
}

// A backendNAR reads the NAR of a path. The client compares it with what it was told.
type backendNAR struct {
	ctx     context.Context
	backend Backend
	path    nix.StorePath
}

// WriteTo implements io.WriterTo.
func (n backendNAR) WriteTo(w io.Writer) (int64, error) {
	return 0, n.backend.WriteNAR(n.ctx, w, n.path)
}

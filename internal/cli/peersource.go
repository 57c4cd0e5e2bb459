package cli

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/remote"
)

// A peerSource takes NARs from a far end in our own protocol.
type peerSource struct {
	closure.Source
	peer    *remote.Peer
	writer  *localstore.Import // which may have kept the beginnings of NARs; nil: nobody has
	updates *updates           // nil: all comes as it is
	log     *slog.Logger
}

// kept returns how much of a NAR is here from before.
func (s peerSource) kept(info *nix.PathInfo) int64 {
	if s.writer == nil {
		return 0
	}
	narHash, size := s.writer.Partial(info.Path)
	if narHash != info.NARHash || size >= info.NARSize {
		return 0
	}
	return size
}

// DeliversPartialNARs implements closure.PartialSource.
func (s peerSource) DeliversPartialNARs() {}

// OpenLane implements closure.Source.
func (s peerSource) OpenLane(context.Context) (closure.SourceLane, error) {
	channel, err := s.peer.OpenChannel()
	if err != nil {
		return nil, err
	}
	return &peerSourceLane{Channel: channel, source: s}, nil
}

type peerSourceLane struct {
	*remote.Channel
	source peerSource

	mu        sync.Mutex
	requested []narRequest // and not yet taken, in order
}

// A narRequest is for a NAR from offset on, or for what makes it of an older path.
type narRequest struct {
	info   *nix.PathInfo
	offset int64
	base   *nix.PathInfo // nil: the NAR itself shall come
}

// Request implements closure.SourceLane.
func (l *peerSourceLane) Request(ctx context.Context, info *nix.PathInfo) error {
	r := narRequest{info: info}
	base, tried := l.source.updates.take(info.Path)
	if size := l.source.kept(info); size > 0 && !tried && (base == nil || size >= info.NARSize/2) {
		r.offset = size
		l.source.log.Info("going on in the middle", "path", info.Path, "bytes", size)
	} else {
		r.base = base
	}
	l.mu.Lock()
	l.requested = append(l.requested, r)
	l.mu.Unlock()
	if r.base != nil {
		return l.source.updates.request(ctx, l.Channel, r)
	}
	return l.Channel.Request(ctx, info, r.offset)
}

// Next implements closure.SourceLane.
func (l *peerSourceLane) Next(ctx context.Context) (closure.NAR, error) {
	arrival, err := l.Channel.Next(ctx)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	r := l.requested[0]
	l.requested = l.requested[1:]
	l.mu.Unlock()
	switch {
	case r.base != nil:
		return l.source.updates.open(ctx, arrival, r), nil
	case r.offset == 0:
		return arrival, nil
	}
	kept, err := l.source.writer.OpenPartial(ctx, r.info, r.offset)
	if err != nil {
		kept = io.NopCloser(failingReader{err}) // the path is asked for once more
	}
	return &joinedNAR{kept, arrival}, nil
}

// A joinedNAR begins with what was kept of it.
type joinedNAR struct {
	kept    io.ReadCloser
	arrival *remote.Arrival
}

// MayBeWrong implements closure.PartialNAR.
func (n *joinedNAR) MayBeWrong() {}

// Reader implements closure.NAR.
func (n *joinedNAR) Reader() io.Reader { return io.MultiReader(n.kept, n.arrival.Reader()) }

// WriteTo implements closure.NAR.
func (n *joinedNAR) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, n.Reader()) }

// Close implements closure.NAR.
func (n *joinedNAR) Close() error { return errors.Join(n.kept.Close(), n.arrival.Close()) }

type failingReader struct{ err error }

func (f failingReader) Read([]byte) (int, error) { return 0, f.err }

package closure

import (
	"context"
	"io"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A NARWriter is a store whose contents can be read at once, as on this machine.
type NARWriter interface {
	// WriteNAR may have written part of p's NAR when it fails.
	WriteNAR(ctx context.Context, w io.Writer, p nix.StorePath) error
}

// DirectLane returns a lane that reads each NAR at the moment when it is used.
func DirectLane(store NARWriter) SourceLane {
	return &directLane{store: store, requested: make(chan *nix.PathInfo, maxAssigned)}
}

type directLane struct {
	store     NARWriter
	requested chan *nix.PathInfo
}

func (l *directLane) Request(ctx context.Context, info *nix.PathInfo) error {
	select {
	case l.requested <- info:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *directLane) Next(ctx context.Context) (NAR, error) {
	select {
	case info := <-l.requested:
		return &directNAR{ctx: ctx, store: l.store, path: info.Path}, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Lookahead is small: nothing is gained by it here, and a path that waits in one
// lane cannot go through another that is free.
func (l *directLane) Lookahead() int64 { return 64 << 10 }

func (l *directLane) Abort() {}

type directNAR struct {
	ctx   context.Context
	store NARWriter
	path  nix.StorePath
}

func (n *directNAR) WriteTo(w io.Writer) (int64, error) {
	return 0, n.store.WriteNAR(n.ctx, w, n.path)
}

// Reader returns nil: a store of this machine is never copied to another one of it.
func (n *directNAR) Reader() io.Reader { return nil }

func (n *directNAR) Close() error { return nil }

package cli

import (
	"context"
	"runtime"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/remote"
)

// mostChannels is how many paths are worked on at once at each end.
const mostChannels = 4

// speakPeer goes on in our own protocol with the far end, for which all questions are
// answered, in so many sessions. send is what is to be copied. It returns the number of paths to have under way.
func (r *copyRun) speakPeer(ctx context.Context, store *remote.Store, e *ends, send []*nix.PathInfo, sessions int) (channels int, err error) {
	if e.far.peer, err = store.OpenPeer(ctx, r.peerOptions(e.far)); err != nil {
		return 0, err
	}
	for range sessions - 1 {
		go func() {
			if err := e.far.peer.AddLane(ctx); err != nil {
				r.log.Debug("a further session cannot be had, going on without it", "reason", err)
			}
		}()
	}
	channels = min(max(2, runtime.NumCPU()), mostChannels)
	if r.pull {
		e.source = peerSource{e.source, e.far.peer}
		return channels, nil
	}
	target := peerTarget{e.target, e.far.peer, nil}
	if e.far.peer.InOrder() {
		channels = 1
	} else if e.local.store != nil && r.wantsDeltas(e.far) {
		if target.deltas, err = newDeltas(ctx, e.far.peer, e.local.store, send, r.log); err != nil {
			return 0, err
		}
	}
	e.target = target
	return channels, nil
}

// peerOptions are those for the link, as far as it is known.
func (r *copyRun) peerOptions(far *farEnd) remote.PeerOptions {
	o := remote.PeerOptions{Far: !isNear(far.conn)}
	switch {
	case r.gzip || r.compress == "none":
		o.Packing = remote.PackNever
	case o.Far:
		o.Packing = remote.PackAtOnce
	default:
		o.Packing = remote.PackIfSlow
	}
	return o
}

// wantsDeltas reports whether a delta is likely to be made faster than the link takes
// the whole.
func (r *copyRun) wantsDeltas(far *farEnd) bool {
	return r.delta == "always" || r.delta == "auto" && !isNear(far.conn)
}

// A peerSource takes NARs from a far end in our own protocol.
type peerSource struct {
	closure.Source
	peer *remote.Peer
}

// OpenLane implements closure.Source.
func (s peerSource) OpenLane(context.Context) (closure.SourceLane, error) {
	channel, err := s.peer.OpenChannel()
	if err != nil {
		return nil, err
	}
	return peerSourceLane{channel}, nil
}

type peerSourceLane struct{ *remote.Channel }

// Next implements closure.SourceLane.
func (l peerSourceLane) Next(ctx context.Context) (closure.NAR, error) {
	arrival, err := l.Channel.Next(ctx)
	if err != nil {
		return nil, err
	}
	return arrival, nil
}

// A peerTarget gives NARs to a far end in our own protocol.
type peerTarget struct {
	closure.Target
	peer   *remote.Peer
	deltas *deltas // nil: all is sent as it is
}

// AnyOrder implements closure.Target.
func (t peerTarget) AnyOrder() bool { return !t.peer.InOrder() }

// OpenLane implements closure.Target.
func (t peerTarget) OpenLane(context.Context) (closure.TargetLane, error) {
	channel, err := t.peer.OpenChannel()
	if err != nil {
		return nil, err
	}
	return peerTargetLane{channel, t.deltas}, nil
}

// Finish implements closure.Finisher.
func (t peerTarget) Finish(ctx context.Context) error { return t.peer.Finish(ctx) }

type peerTargetLane struct {
	*remote.Channel
	deltas *deltas
}

// Add implements closure.TargetLane.
func (l peerTargetLane) Add(ctx context.Context, info *nix.PathInfo, nar closure.NAR, done func(error)) error {
	if l.deltas != nil {
		if patch, ok := l.deltas.patch(ctx, info); ok {
			return l.Channel.AddPatch(ctx, info, patch, nar, done)
		}
	}
	return l.Channel.Add(ctx, info, nar, done)
}

// Flush implements closure.TargetLane: whatever was added is on its way, and paths
// are decided on in groups, or at the end.
func (l peerTargetLane) Flush(context.Context) error { return nil }

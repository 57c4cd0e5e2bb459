package cli

import (
	"context"
	"log/slog"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/localstore"
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
	allowWindow(e.far.peer.Window())
	for range sessions - 1 {
		go func() {
			if err := e.far.peer.AddLane(ctx); err != nil {
				r.log.Debug("a further session cannot be had, going on without it", "reason", err)
			}
		}()
	}
	channels = min(max(2, runtime.NumCPU()), mostChannels)
	if r.pull {
		source := peerSource{Source: e.source, peer: e.far.peer, writer: e.local.writer, log: r.log}
		if source.writer != nil {
			source.writer.KeepPartials(nil)
			for _, info := range send {
				r.kept += source.kept(info)
			}
			if r.wantsDeltas(e.far) {
				source.updates, err = newUpdates(ctx, source.peer, e.local.store, send, r.delta == "always", r.log)
			}
		}
		e.source = source
		return channels, err
	}
	if r.atomic {
		if err := e.far.peer.Atomic(len(send)); err != nil {
			return 0, err
		}
	}
	target := peerTarget{Target: e.target, peer: e.far.peer, store: e.local.store}
	if target.peer.InOrder() {
		channels = 1
	}
	if target.store != nil {
		if err := r.findThere(ctx, &target, e.far, send); err != nil {
			return 0, err
		}
	}
	e.target = target
	return channels, nil
}

// findThere asks what the far end has of the paths that are to be sent: older ones to
// compute deltas against, and what came of large ones before a connection was lost. Both
// is one round trip.
func (r *copyRun) findThere(ctx context.Context, target *peerTarget, far *farEnd, send []*nix.PathInfo) error {
	var asking errgroup.Group
	asking.Go(func() (err error) {
		target.kept, err = keptThere(ctx, target.peer, send, r.log)
		for _, size := range target.kept {
			r.kept += size
		}
		return err
	})
	if r.wantsDeltas(far) {
		asking.Go(func() (err error) {
			target.deltas, err = newDeltas(ctx, target.peer, target.store, send, r.log)
			if err == nil && r.delta != "always" {
				target.deltas.link = target.peer.LinkRate
			}
			return err
		})
	}
	return asking.Wait()
}

// keptThere returns how much of the large ones among infos the far end has kept.
func keptThere(ctx context.Context, peer *remote.Peer, infos []*nix.PathInfo, log *slog.Logger) (map[nix.StorePath]int64, error) {
	var large []*nix.PathInfo
	for _, info := range infos {
		if info.NARSize > localstore.WorthKeeping {
			large = append(large, info)
		}
	}
	if len(large) == 0 {
		return nil, nil
	}
	kept, err := peer.Kept(ctx, large)
	for path, size := range kept {
		log.Info("going on in the middle", "path", path, "bytes", size)
	}
	return kept, err
}

// peerOptions are those for the link, as far as it is known.
func (r *copyRun) peerOptions(far *farEnd) remote.PeerOptions {
	o := remote.PeerOptions{Far: !isNear(far.conn), Limit: limiter(r.limit)}
	switch {
	case r.gzip || r.compress == "none":
		o.Packing = remote.PackNever
	case o.Far || o.Limit != nil:
		o.Packing = remote.PackAtOnce
	default:
		o.Packing = remote.PackIfSlow
	}
	return o
}

// wantsDeltas reports whether a delta is likely to be made faster than the link takes
// the whole. What is measured later may tell otherwise.
func (r *copyRun) wantsDeltas(far *farEnd) bool {
	return r.delta == "always" || r.delta == "auto" && (!isNear(far.conn) || r.limit != 0)
}

// A peerTarget gives NARs to a far end in our own protocol.
type peerTarget struct {
	closure.Target
	peer   *remote.Peer
	store  *localstore.Store       // that NARs come from; nil where that is not read directly
	kept   map[nix.StorePath]int64 // bytes of NARs that are over there from before
	deltas *deltas                 // nil: all is sent as it is
}

// AnyOrder implements closure.Target.
func (t peerTarget) AnyOrder() bool { return !t.peer.InOrder() }

// VerifiesNARs implements closure.VerifyingTarget: our own import does. A Nix behind the far
// end, which takes paths in order, ends the session instead.
func (t peerTarget) VerifiesNARs() bool { return !t.peer.InOrder() }

// OpenLane implements closure.Target.
func (t peerTarget) OpenLane(context.Context) (closure.TargetLane, error) {
	channel, err := t.peer.OpenChannel()
	if err != nil {
		return nil, err
	}
	return peerTargetLane{channel, t}, nil
}

// Finish implements closure.Finisher.
func (t peerTarget) Finish(ctx context.Context) error { return t.peer.Finish(ctx) }

type peerTargetLane struct {
	*remote.Channel
	target peerTarget
}

// Add implements closure.TargetLane.
func (l peerTargetLane) Add(ctx context.Context, info *nix.PathInfo, nar closure.NAR, done func(error)) error {
	t := l.target
	if kept := t.kept[info.Path]; kept > 0 && (kept >= info.NARSize/2 || !t.deltas.has(info.Path)) {
		return l.Channel.AddRest(ctx, info, kept, storedNAR{ctx, t.store, info.Path}, nar, done)
	}
	if patch, ok := t.deltas.patch(ctx, info); ok {
		return l.Channel.AddPatch(ctx, info, patch, nar, done)
	}
	return l.Channel.Add(ctx, info, nar, done)
}

// Flush implements closure.TargetLane: whatever was added is on its way, and paths
// are decided on in groups, or at the end.
func (l peerTargetLane) Flush(context.Context) error { return nil }

package cli

import (
	"context"
	"log/slog"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/remote"
)

// A protocolStore is a store behind one of Nix's protocols: a *remote.Store or a
// *remote.Daemon.
type protocolStore interface {
	Greet(ctx context.Context) error
	Describe() string
	Program() string
	Forced() bool
	RoundTrips() int
	Room() *remote.Room
	ValidPaths(ctx context.Context, paths []nix.StorePath, lock, substitute bool) ([]nix.StorePath, error)
	PathInfos(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error)
	Hold(ctx context.Context, paths []nix.StorePath) error
	Trust(ctx context.Context) (remote.Trust, error)
	OpenLane(ctx context.Context) (*remote.Lane, error)
	Close() error
}

// sourceOf makes a closure.Source of a store; with outputs those of derivations belong
// to a closure.
func sourceOf(s protocolStore, outputs bool) closure.Source {
	source := protocolSource{s}
	switch s := s.(type) {
	case *remote.Store:
		return serveSource{source, s, outputs}
	case *remote.Daemon:
		return daemonSource{source, s}
	}
	return source
}

// source is the far end as a closure.Source. Where a session of nix-store can be had
// beside a daemon, that one answers for whole closures.
func (f *farEnd) source(ctx context.Context, outputs bool, log *slog.Logger) closure.Source {
	if f.side == nil {
		return sourceOf(f.protocolStore, outputs)
	}
	if err := f.side.Greet(ctx); err != nil {
		log.Info("no nix-store beside the daemon: the closure is found level by level, a round trip for each", "reason", err)
		return sourceOf(f.protocolStore, outputs)
	}
	return serveSource{protocolSource{f.protocolStore}, f.side, outputs}
}

// A protocolSource makes a closure.Source of a store that knows no closures.
type protocolSource struct{ protocolStore }

// OpenLane implements closure.Source.
func (s protocolSource) OpenLane(ctx context.Context) (closure.SourceLane, error) {
	lane, err := s.protocolStore.OpenLane(ctx)
	if err != nil {
		return nil, err
	}
	return protocolSourceLane{lane}, nil
}

// A serveSource has a store of the serve protocol that answers for whole closures.
type serveSource struct {
	protocolSource
	whole   *remote.Store
	outputs bool // of derivations belong to the closure
}

// ClosurePaths implements closure.ClosurePathSource.
func (s serveSource) ClosurePaths(ctx context.Context, roots []nix.StorePath) ([]nix.StorePath, error) {
	return s.whole.ClosurePaths(ctx, roots, s.outputs)
}

// A daemonSource can be asked for the outputs of derivations.
type daemonSource struct {
	protocolSource
	daemon *remote.Daemon
}

// ValidOutputs implements closure.OutputSource.
func (s daemonSource) ValidOutputs(ctx context.Context, derivations []nix.StorePath) ([]nix.StorePath, error) {
	return s.daemon.ValidOutputs(ctx, derivations)
}

type protocolSourceLane struct{ *remote.Lane }

// Next implements closure.SourceLane.
func (l protocolSourceLane) Next(ctx context.Context) (closure.NAR, error) {
	delivery, err := l.Lane.Next(ctx)
	if err != nil {
		return nil, err
	}
	return delivery, nil
}

// targetOf makes a closure.Target of a store.
func targetOf(s protocolStore) closure.Target {
	switch s := s.(type) {
	case *remote.Store:
		return serveTarget{protocolTarget{s}, s}
	case *remote.Daemon:
		return daemonTarget{protocolTarget{s}, s}
	}
	return protocolTarget{s}
}

// A protocolTarget makes a closure.Target of a store.
type protocolTarget struct{ protocolStore }

// ValidPaths implements closure.Target.
func (t protocolTarget) ValidPaths(ctx context.Context, paths []nix.StorePath, lock bool) ([]nix.StorePath, error) {
	return t.protocolStore.ValidPaths(ctx, paths, lock, false)
}

// Substitute implements closure.SubstitutingTarget.
func (t protocolTarget) Substitute(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error) {
	return t.protocolStore.ValidPaths(ctx, paths, true, true)
}

// AnyOrder reports that Nix registers each path when it comes.
func (t protocolTarget) AnyOrder() bool { return false }

// OpenLane implements closure.Target.
func (t protocolTarget) OpenLane(ctx context.Context) (closure.TargetLane, error) {
	lane, err := t.protocolStore.OpenLane(ctx)
	if err != nil {
		return nil, err
	}
	return protocolTargetLane{lane}, nil
}

// A serveTarget is one of the serve protocol, which tells what its caches have if it is
// ours.
type serveTarget struct {
	protocolTarget
	store *remote.Store
}

// CanOffer implements closure.OfferingTarget.
func (t serveTarget) CanOffer() bool { return t.store.Foresees() }

// Offers implements closure.OfferingTarget.
func (t serveTarget) Offers(ctx context.Context, infos []*nix.PathInfo) ([]closure.Offer, error) {
	paths := make([]nix.StorePath, len(infos))
	byPath := make(map[nix.StorePath]*nix.PathInfo, len(infos))
	for i, info := range infos {
		paths[i], byPath[info.Path] = info.Path, info
	}
	cached, err := t.store.Foresee(ctx, paths)
	if err != nil {
		return nil, err
	}
	var offers []closure.Offer
	for _, c := range cached {
		if info := byPath[c.Path]; c.NARHash == info.NARHash {
			offers = append(offers, closure.Offer{Info: info, Cache: c.Cache, Download: c.Download})
		}
	}
	return offers, nil
}

// A daemonTarget can tell what its caches have.
type daemonTarget struct {
	protocolTarget
	daemon *remote.Daemon
}

// Substitutable implements closure.ForeseeingTarget.
func (t daemonTarget) Substitutable(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error) {
	return t.daemon.Substitutable(ctx, paths)
}

type protocolTargetLane struct{ *remote.Lane }

// Add implements closure.TargetLane.
func (l protocolTargetLane) Add(ctx context.Context, info *nix.PathInfo, nar closure.NAR, done func(error)) error {
	return l.Lane.Add(ctx, info, nar, done)
}

// Flush implements closure.TargetLane.
func (l protocolTargetLane) Flush(context.Context) error { return l.Lane.Flush() }

package cli

import (
	"context"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/remote"
)

// A serveSource makes a closure.Source of a store behind the serve protocol.
type serveSource struct {
	*remote.Store
	outputs bool // of derivations belong to the closure
}

// ClosurePaths implements closure.ClosurePathSource.
func (s serveSource) ClosurePaths(ctx context.Context, roots []nix.StorePath) ([]nix.StorePath, error) {
	return s.Store.ClosurePaths(ctx, roots, s.outputs)
}

// OpenLane implements closure.Source.
func (s serveSource) OpenLane(ctx context.Context) (closure.SourceLane, error) {
	lane, err := s.Store.OpenLane(ctx)
	if err != nil {
		return nil, err
	}
	return serveSourceLane{lane}, nil
}

type serveSourceLane struct{ *remote.Lane }

// Next implements closure.SourceLane.
func (l serveSourceLane) Next(ctx context.Context) (closure.NAR, error) {
	delivery, err := l.Lane.Next(ctx)
	if err != nil {
		return nil, err
	}
	return delivery, nil
}

// A serveTarget makes a closure.Target of a store behind the serve protocol.
type serveTarget struct{ *remote.Store }

// ValidPaths implements closure.Target.
func (t serveTarget) ValidPaths(ctx context.Context, paths []nix.StorePath, lock bool) ([]nix.StorePath, error) {
	return t.Store.ValidPaths(ctx, paths, lock, false)
}

// Substitute implements closure.SubstitutingTarget.
func (t serveTarget) Substitute(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error) {
	return t.Store.ValidPaths(ctx, paths, true, true)
}

// AnyOrder reports that Nix registers each path when it comes.
func (t serveTarget) AnyOrder() bool { return false }

// OpenLane implements closure.Target.
func (t serveTarget) OpenLane(ctx context.Context) (closure.TargetLane, error) {
	lane, err := t.Store.OpenLane(ctx)
	if err != nil {
		return nil, err
	}
	return serveTargetLane{lane}, nil
}

type serveTargetLane struct{ *remote.Lane }

// Add implements closure.TargetLane.
func (l serveTargetLane) Add(ctx context.Context, info *nix.PathInfo, nar closure.NAR, done func(error)) error {
	return l.Lane.Add(ctx, info, nar, done)
}

// Flush implements closure.TargetLane.
func (l serveTargetLane) Flush(context.Context) error { return l.Lane.Flush() }

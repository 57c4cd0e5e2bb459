package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
)

// A localEnd is the store at this end: read directly where it can be, written
// directly or through the Nix that is here.
type localEnd struct {
	store  *localstore.Store  // nil where everything goes through Nix
	writer *localstore.Import // nil until something is written directly
	nix    protocolStore      // nil where everything is direct
	nixURI string             // the store that nix means; empty: its default
	lanes  lanes              // of nix, for NARs one at a time
	source closure.Source
	target closure.Target
}

// close releases locks and temporary roots.
func (l *localEnd) close() error {
	var errs []error
	if l.writer != nil {
		errs = append(errs, l.writer.Close())
	}
	if l.nix != nil {
		errs = append(errs, l.nix.Close())
	}
	if l.store != nil {
		errs = append(errs, l.store.Close())
	}
	return errors.Join(errs...)
}

// RealisationsOf implements substitute.RealisationSource. Through Nix none are found.
func (l *localEnd) RealisationsOf(ctx context.Context, paths []nix.StorePath) ([]*nix.Realisation, error) {
	if l.store == nil {
		return nil, nil
	}
	return l.store.RealisationsOf(ctx, paths)
}

// takeWriter hands the import over to a caller who closes it.
func (l *localEnd) takeWriter() *localstore.Import {
	writer := l.writer
	l.writer = nil
	return writer
}

// resolve finds the store paths that arguments mean.
func (l *localEnd) resolve(ctx context.Context, args []string) ([]nix.StorePath, error) {
	roots := make([]nix.StorePath, len(args))
	for i, arg := range args {
		var err error
		if roots[i], err = l.resolveLink(ctx, arg); err != nil {
			return nil, &notInSourceError{err}
		}
	}
	return roots, nil
}

// resolveLink follows an argument into the store.
func (l *localEnd) resolveLink(ctx context.Context, arg string) (nix.StorePath, error) {
	p, _, err := l.split(ctx, arg)
	return p, err
}

// split follows an argument into the store, and returns what lies beneath the path, too.
func (l *localEnd) split(ctx context.Context, arg string) (p nix.StorePath, inside string, err error) {
	if l.store != nil {
		return l.store.Resolve(ctx, arg)
	}
	dir := storeDir()
	p, inside, err = localstore.Resolve(ctx, dir, string(dir), arg)
	if err != nil {
		return nix.StorePath{}, "", fmt.Errorf("%w: %w", err, nix.ErrNotValid)
	}
	return p, inside, nil
}

// A directSource makes a closure.Source of a store that is read directly.
type directSource struct {
	*localstore.Store
	holder closure.Holder // keeps paths from garbage collection
}

// OpenLane implements closure.Source.
func (s directSource) OpenLane(context.Context) (closure.SourceLane, error) {
	return closure.DirectLane(s.Store), nil
}

// Hold implements closure.Holder.
func (s directSource) Hold(ctx context.Context, paths []nix.StorePath) error {
	return s.holder.Hold(ctx, paths)
}

// A directTarget makes a closure.Target of a store that is written directly.
type directTarget struct {
	*localstore.Store
	writer *localstore.Import // nil in a dry run
}

// ValidPaths implements closure.Target.
func (t directTarget) ValidPaths(ctx context.Context, paths []nix.StorePath, lock bool) ([]nix.StorePath, error) {
	if lock {
		if err := t.writer.Expect(ctx, paths); err != nil {
			return nil, err
		}
	}
	return t.Store.ValidPaths(ctx, paths)
}

// AnyOrder reports that a path waits for its references by itself.
func (t directTarget) AnyOrder() bool { return true }

// ToleratesBrokenNARs implements closure.TolerantTarget: a lane holds nothing of a path.
func (t directTarget) ToleratesBrokenNARs() {}

// OpenLane implements closure.Target: all lanes lead into one import.
func (t directTarget) OpenLane(ctx context.Context) (closure.TargetLane, error) {
	return directTargetLane{t.writer}, nil
}

// Finish implements closure.Finisher: paths whose locks other processes have are
// waited for.
func (t directTarget) Finish(ctx context.Context) error { return t.writer.Flush(ctx) }

type directTargetLane struct{ writer *localstore.Import }

// Add implements closure.TargetLane.
func (l directTargetLane) Add(ctx context.Context, info *nix.PathInfo, nar closure.NAR, done func(error)) error {
	return l.writer.Add(ctx, info, nar.Reader(), func(err error) {
		if err != nil {
			err = fmt.Errorf("receive %s: %w", info.Path, err)
		}
		done(err)
	})
}

// Flush implements closure.TargetLane: what is complete is registered.
func (l directTargetLane) Flush(ctx context.Context) error { return l.writer.Commit(ctx) }

// Abort implements closure.TargetLane; the context of Add does all.
func (l directTargetLane) Abort() {}

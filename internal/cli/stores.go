package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/farend"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
)

// A purpose is what a store of this machine is opened for.
type purpose int

const (
	toLook  purpose = iota // nothing may change
	toRead                 // and temporary roots are taken
	toWrite                // and paths added; a store that is not there is made
)

// openLocal opens the store that --store means.
func (p *program) openLocal(ctx context.Context, uri string, why purpose) (*localEnd, error) {
	choice, err := p.choose(uri)
	if err != nil {
		return nil, err
	}
	if choice.ThroughNix {
		return p.openThroughNix(ctx, choice, why)
	}
	p.log.Info("local store", "directory", choice.Config.RealDir, "because", choice.Reason)
	return p.openDirect(ctx, choice.Config, why)
}

// openDirectly opens the store itself, also where a copy would go through Nix, unless
// the user has named a daemon or the store cannot be used without Nix.
func (p *program) openDirectly(ctx context.Context, uri string, why purpose) (*localEnd, error) {
	choice, err := p.choose(uri)
	if err != nil {
		return nil, err
	}
	if choice.Strict {
		return p.openThroughNix(ctx, choice, why)
	}
	return p.openDirect(ctx, choice.Config, why)
}

// choose finds the store that --store means. The logical directory of that store is that
// of all paths from then on, also for the Nix that is started.
func (p *program) choose(uri string) (localstore.Choice, error) {
	choice, err := farend.Choose(uri)
	if err != nil {
		return choice, err
	}
	choice.Config.Logger = p.log
	p.requireSigs = choice.RequireSigs
	if dir := choice.Config.StoreDir; dir != storeDir() {
		err = os.Setenv("NIX_STORE_DIR", string(dir))
	}
	return choice, err
}

// openDirect reads and writes the store itself.
func (p *program) openDirect(ctx context.Context, c localstore.Config, why purpose) (*localEnd, error) {
	open := localstore.Open
	if why == toWrite {
		if c.ReadOnly {
			return nil, fmt.Errorf("store %s: %w: it is named with read-only=true", c.RealDir, localstore.ErrReadOnly)
		}
		if err := p.makeWritable(ctx, c); err != nil {
			return nil, err
		}
		open = localstore.OpenOrCreate
	}
	c.ReadOnly = why != toWrite
	store, err := open(ctx, c)
	if why == toLook && errors.Is(err, localstore.ErrNoStore) {
		return &localEnd{source: emptySource{}, target: emptyTarget{}}, nil
	}
	if errors.Is(err, localstore.ErrReadOnly) {
		return nil, fmt.Errorf("%w; --store /DIR uses one of your own", err)
	}
	if err != nil {
		return nil, err
	}
	l := &localEnd{store: store, source: directSource{store, holderOf(store, why)}}
	if why == toWrite {
		l.writer = store.NewImport(localstore.ImportOptions{})
	}
	l.target = directTarget{store, l.writer}
	return l, nil
}

// holderOf takes temporary roots in the store itself, where this user may.
func holderOf(store *localstore.Store, why purpose) closure.Holder {
	return holderFunc(func(ctx context.Context, paths []nix.StorePath) error {
		err := store.Hold(ctx, paths)
		if why != toWrite && errors.Is(err, localstore.ErrReadOnly) {
			return nil
		}
		return err
	})
}

// A holderFunc is a function as a closure.Holder.
type holderFunc func(ctx context.Context, paths []nix.StorePath) error

// Hold implements closure.Holder.
func (f holderFunc) Hold(ctx context.Context, paths []nix.StorePath) error { return f(ctx, paths) }

// openThroughNix writes and takes temporary roots through the Nix that is here, as
// a daemon or a read-only mount of the store demand. Reading goes past it where
// that is possible: it is faster.
func (p *program) openThroughNix(ctx context.Context, choice localstore.Choice, why purpose) (*localEnd, error) {
	store, readErr := openReadable(ctx, choice)
	p.log.Info("local store through "+choice.Through(), "because", choice.Reason, "reads", readsHow(readErr))
	if why == toLook && readErr == nil && !choice.Strict {
		return &localEnd{store: store, source: directSource{Store: store}, target: directTarget{Store: store}}, nil
	}
	l := &localEnd{store: store, nixURI: choice.URI}
	nix, err := openNix(ctx, choice, why, p.log)
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	l.nix, l.source, l.target = nix, sourceOf(nix, false), targetOf(nix)
	if l.store != nil {
		l.source = directSource{l.store, holderFunc(l.holdThroughNix)}
	}
	return l, nil
}

// openReadable returns nil where the store cannot be read directly.
func openReadable(ctx context.Context, choice localstore.Choice) (*localstore.Store, error) {
	if choice.Opaque {
		return nil, errOpaque
	}
	c := choice.Config
	c.ReadOnly = true
	store, err := localstore.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	return store, nil
}

// errOpaque says why a store is used through Nix although its files can be read.
var errOpaque = errors.New("only Nix can read this store")

// holdThroughNix takes temporary roots, and waits for it: nothing else may be asked
// of that Nix.
func (l *localEnd) holdThroughNix(ctx context.Context, paths []nix.StorePath) error {
	_, err := l.nix.ValidPaths(ctx, paths, true, false)
	return err
}

func readsHow(err error) string {
	if err == nil {
		return "directly"
	}
	return fmt.Sprintf("through it, too: %v", err)
}

// An emptySource stands for a store that a dry run finds missing and may not make.
type emptySource struct{}

// PathInfos implements closure.Source.
func (emptySource) PathInfos(context.Context, []nix.StorePath) ([]*nix.PathInfo, error) {
	return nil, nil
}

// OpenLane implements closure.Source.
func (emptySource) OpenLane(context.Context) (closure.SourceLane, error) {
	return nil, localstore.ErrNoStore
}

// An emptyTarget is the same for the other direction.
type emptyTarget struct{}

// ValidPaths implements closure.Target.
func (emptyTarget) ValidPaths(context.Context, []nix.StorePath, bool) ([]nix.StorePath, error) {
	return nil, nil
}

// AnyOrder implements closure.Target.
func (emptyTarget) AnyOrder() bool { return true }

// OpenLane implements closure.Target.
func (emptyTarget) OpenLane(context.Context) (closure.TargetLane, error) {
	return nil, localstore.ErrNoStore
}

// storeDir is the logical store directory of this machine, and so of any that it
// exchanges paths with.
func storeDir() nix.StoreDir {
	return localstore.StoreDir(os.Getenv)
}

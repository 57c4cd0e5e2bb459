package remote

import (
	"context"
	"fmt"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// buildAlreadyValid is the status of what need not be built.
const buildAlreadyValid = 2

func (d *daemonServer) ensurePath(ctx context.Context) error {
	p := d.in.Path(d.dir)
	if err := d.request("have a path"); err != nil {
		return err
	}
	return d.reply(d.ensure(ctx, p.String()), one)
}

// ensure fetches what is wanted, with all that it refers to, if it is a path that some
// cache has; nothing is built.
func (d *daemonServer) ensure(ctx context.Context, wanted string) error {
	missing, err := d.missing(ctx, wanted)
	if err != nil || missing.IsZero() {
		return err
	}
	if isPath(d.dir, wanted) {
		found, _, _, err := d.foresee(ctx, []nix.StorePath{missing})
		if err != nil {
			return err
		}
		a := asked{missing: []nix.StorePath{missing}}
		for _, info := range found {
			a.missing = append(a.missing, info.Path)
		}
		if err := d.substitute(ctx, &a); err != nil {
			return err
		}
		if missing, err = d.missing(ctx, wanted); err != nil || missing.IsZero() {
			return err
		}
		return fmt.Errorf("%s: %w, and it cannot be fetched; %s", missing, nix.ErrNotValid, serverNoBuild)
	}
	return fmt.Errorf("%s: %s would have to be built or fetched", serverNoBuild, missing)
}

// readWanted reads what the operations that build have in common.
func (d *daemonServer) readWanted() ([]string, error) {
	wanted := d.in.Strings(serverMaxWanted, wire.MaxPath)
	mode := d.in.Uint64()
	if err := d.request("build paths"); err != nil {
		return nil, err
	}
	if mode == buildModeRepair && d.trust() != Trusted {
		return nil, &wire.FormatError{Msg: "repairing is not allowed, because you are not in 'trusted-users'"}
	}
	return wanted, nil
}

// buildPaths is content where there is nothing to build.
func (d *daemonServer) buildPaths(ctx context.Context) error {
	wanted, err := d.readWanted()
	if err != nil {
		return err
	}
	for _, word := range wanted {
		if err := d.ensure(ctx, word); err != nil {
			return d.reply(err, nothing)
		}
	}
	return d.reply(nil, one)
}

func (d *daemonServer) buildPathsWithResults(ctx context.Context) error {
	wanted, err := d.readWanted()
	if err != nil {
		return err
	}
	results := make([]error, len(wanted))
	for i, word := range wanted {
		results[i] = d.ensure(ctx, word)
	}
	return d.reply(nil, func(w *wire.Writer) {
		w.Uint64(uint64(len(wanted)))
		for i, word := range wanted {
			w.String(word)
			d.writeBuildResult(w, results[i])
		}
	})
}

func (d *daemonServer) writeBuildResult(w *wire.Writer, err error) {
	if err == nil {
		w.Uint64(buildAlreadyValid)
		w.String("")
	} else {
		w.Uint64(buildMiscFailure)
		w.String(err.Error())
	}
	if d.since(29) {
		for range 4 { // times built, not deterministic, start, stop
			w.Uint64(0)
		}
	}
	if d.since(37) {
		w.Uint64(0) // processor time of the user
		w.Uint64(0) // and of the system
	}
	if d.since(28) {
		w.Uint64(0) // no outputs that were not known before
	}
}

// buildDerivation refuses in the answer, so that a client with further machines to ask
// can do so.
func (d *daemonServer) buildDerivation() error {
	p := d.in.Path(d.dir)
	d.skipBasicDerivation()
	d.in.Uint64() // mode
	if err := d.request("build a derivation"); err != nil {
		return err
	}
	return d.reply(nil, func(w *wire.Writer) {
		d.writeBuildResult(w, fmt.Errorf("%s: %s cannot be built", serverNoBuild, p))
	})
}

// refuseOther answers operations that are not done from afar.
func (d *daemonServer) refuseOther(op uint64) error {
	const atHome = "this is done on the host itself"
	switch op {
	case opCollectGarbage:
		d.in.Uint64() // action
		d.in.EachPaths(d.dir, wire.MaxPaths, func([]nix.StorePath) {})
		d.in.Bool()   // ignore roots
		for range 4 { // bytes to free, and three numbers without a meaning
			d.in.Uint64()
		}
		return d.refuse("collect garbage", atHome)
	case opVerifyStore:
		d.in.Bool() // contents, too
		d.in.Bool() // repair
		return d.refuse("verify the store", atHome)
	case opOptimiseStore:
		return d.refuse("optimise the store", atHome)
	case opAddBuildLog:
		d.in.String(wire.MaxPath)
		if err := d.request("add a build log"); err != nil {
			return err
		}
		if _, err := wire.NewFrameReader(d.in).Drain(); err != nil {
			return err
		}
		return d.refuse("add a build log", "this store keeps none")
	}
	return &wire.FormatError{Msg: fmt.Sprintf("operation %d is not known here", op)}
}

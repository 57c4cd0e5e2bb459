package remote

import (
	"context"
	"errors"
	"fmt"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// A RealisationBackend is a DaemonBackend that keeps realisations.
type RealisationBackend interface {
	// Realisation returns an error that wraps nix.ErrNoRealisation where none is known.
	Realisation(ctx context.Context, id nix.DrvOutput) (*nix.Realisation, error)
	// AddRealisation refuses one that contradicts what is known, or whose paths or
	// dependencies are missing.
	AddRealisation(ctx context.Context, r *nix.Realisation) error
}

// queryRealisation answers with one realisation, or with none.
func (d *daemonServer) queryRealisation(ctx context.Context) error {
	text := d.in.String(wire.MaxField)
	if err := d.request("query a realisation"); err != nil {
		return err
	}
	var r *nix.Realisation
	id, err := nix.ParseDrvOutput(text)
	if b, ok := d.store.(RealisationBackend); ok && err == nil {
		r, err = b.Realisation(ctx, id)
	}
	if errors.Is(err, nix.ErrNoRealisation) {
		err = nil
	}
	return d.reply(err, func(w *wire.Writer) {
		switch {
		case r == nil:
			w.Strings(nil)
		case d.since(31):
			w.Strings([]string{r.Text()})
		default:
			w.Strings([]string{r.Path.String()})
		}
	})
}

// registerRealisation takes the realisations of a trusted client, and those that a trusted
// key has signed.
func (d *daemonServer) registerRealisation(ctx context.Context) error {
	read := d.readRealisation()
	if err := d.request("register a realisation"); err != nil {
		return err
	}
	err := d.mayWrite("register realisations")
	if err == nil {
		err = d.register(ctx, read)
	}
	return d.reply(err, nothing)
}

// readRealisation returns a function that parses what was read.
func (d *daemonServer) readRealisation() func() (*nix.Realisation, error) {
	text := d.in.String(nix.MaxRealisation)
	if d.since(31) {
		return func() (*nix.Realisation, error) { return d.dir.ParseRealisation(text) }
	}
	base := d.in.String(wire.MaxPath)
	return func() (*nix.Realisation, error) {
		id, err := nix.ParseDrvOutput(text)
		if err != nil {
			return nil, err
		}
		path, err := d.dir.ParseBase(base)
		return &nix.Realisation{ID: id, Path: path}, err
	}
}

func (d *daemonServer) register(ctx context.Context, read func() (*nix.Realisation, error)) error {
	b, ok := d.store.(RealisationBackend)
	if !ok {
		return errors.New("register a realisation: this store keeps none")
	}
	r, err := read()
	if err != nil {
		return err
	}
	if d.trust() != Trusted && !r.SignedBy(d.options.Keys) {
		return fmt.Errorf("register a realisation of %s: it lacks a signature by a trusted key: %w", r.ID, nix.ErrNotTrusted)
	}
	return b.AddRealisation(ctx, r)
}

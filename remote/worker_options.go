package remote

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/copy-closure/copy-closure/internal/wire"
)

// Caches are those that a daemon is to take from besides its own, in this session.
type Caches struct {
	Further []string // URLs
	Keys    []string // public keys to believe there
	// Own are the caches of this end's configuration. A daemon that does not let this
	// user add any gets them with Further, as from Nix, in place of its own; it takes
	// those of them that it trusts.
	Own []string
}

// UseCaches tells the daemon of caches, and returns what it does not heed, in its words.
func (d *Daemon) UseCaches(ctx context.Context, c Caches) (refused []string, err error) {
	options := make(map[string]string)
	if len(c.Further) > 0 {
		options["extra-substituters"] = strings.Join(c.Further, " ")
	}
	if len(c.Keys) > 0 {
		options["extra-trusted-public-keys"] = strings.Join(c.Keys, " ")
	}
	// Nix 2.8 tells those who debug it which options it ignores, and nobody else.
	refused, err = d.setOptions(ctx, verbosityDebug, options)
	if err != nil {
		return nil, err
	}
	clear(options)
	isCaches := func(text string) bool { return strings.Contains(text, "extra-substituters") }
	if slices.ContainsFunc(refused, isCaches) {
		refused = slices.DeleteFunc(refused, isCaches)
		options["substituters"] = strings.Join(slices.Concat(c.Own, c.Further), " ")
	}
	more, err := d.setOptions(ctx, verbosityWarn, options)
	return append(refused, more...), err
}

// How much a daemon tells.
const (
	verbosityWarn  = 1
	verbosityDebug = 6
)

// setOptions returns what the daemon says of options that it ignores. Besides options it
// asks for substitution, as is the default, and for nothing that is of consequence to
// more than builds.
func (d *Daemon) setOptions(ctx context.Context, verbosity uint64, options map[string]string) (ignored []string, err error) {
	d.rounds.Add(1)
	if err := d.Greet(ctx); err != nil {
		return nil, err
	}
	err = d.first.ask(ctx, "set options", func(w *wire.Writer) {
		w.Uint64(opSetOptions)
		for _, word := range []uint64{0, 0, 0, verbosity, 1, 0, 1, 0, 0, 0, 0, 1} {
			w.Uint64(word)
		}
		w.Uint64(uint64(len(options)))
		for _, name := range slices.Sorted(maps.Keys(options)) {
			w.String(name)
			w.String(options[name])
		}
	}, func(r *wire.Reader) error {
		d.first.overhear = func(text string) {
			if strings.Contains(text, "ignoring ") {
				ignored = append(ignored, text)
			}
		}
		defer func() { d.first.overhear = nil }()
		return d.first.readMessages(r, nil)
	})
	return ignored, err
}

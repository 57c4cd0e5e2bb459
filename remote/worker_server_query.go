package remote

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

func (d *daemonServer) isValidPath(ctx context.Context) error {
	p := d.in.Path(d.dir)
	if err := d.request("tell whether a path is valid"); err != nil {
		return err
	}
	valid, err := d.backend.ValidPaths(ctx, []nix.StorePath{p})
	return d.reply(err, func(w *wire.Writer) { w.Bool(len(valid) > 0) })
}

func (d *daemonServer) queryValidPaths(ctx context.Context) error {
	a := asked{}
	var failure error
	d.in.EachPaths(d.dir, wire.MaxPaths, func(some []nix.StorePath) {
		if failure == nil { // whether to substitute stands behind the paths
			failure = d.lookUp(ctx, &a, some, false, d.version >= workerSubstitute)
		}
	})
	substitute := d.version >= workerSubstitute && d.in.Bool()
	if err := d.request("tell valid paths"); err != nil {
		return err
	}
	if failure == nil && substitute {
		failure = d.substitute(ctx, &a)
	}
	return d.reply(failure, func(w *wire.Writer) { w.Paths(a.valid.sorted()) })
}

func (d *daemonServer) queryPathInfo(ctx context.Context) error {
	p := d.in.Path(d.dir)
	if err := d.request("tell a path info"); err != nil {
		return err
	}
	infos, err := d.backend.PathInfos(ctx, []nix.StorePath{p})
	return d.reply(err, func(w *wire.Writer) {
		w.Bool(len(infos) > 0)
		if len(infos) > 0 {
			writeKnownInfo(w, infos[0])
		}
	})
}

// queryManyPathInfos tells how many infos follow before it looks for them. A path that is
// deleted in between ends the session.
func (d *daemonServer) queryManyPathInfos(ctx context.Context) error {
	a := asked{}
	var failure error
	d.in.EachPaths(d.dir, wire.MaxPaths, func(some []nix.StorePath) {
		if failure == nil {
			failure = d.lookUp(ctx, &a, some, false, false)
		}
	})
	if err := d.request("tell path infos"); err != nil {
		return err
	}
	if failure != nil {
		return d.reply(failure, nothing)
	}
	valid := a.valid.sorted()
	d.reply(nil, func(w *wire.Writer) { w.Uint64(uint64(len(valid))) })
	for batch := range slices.Chunk(valid, serverInfoBatch) {
		infos, err := d.backend.PathInfos(ctx, batch)
		if err == nil && len(infos) < len(batch) {
			err = fmt.Errorf("a path is not valid any more: %w", nix.ErrNotValid)
		}
		if err != nil {
			return fmt.Errorf("tell path infos: %w", err)
		}
		for _, info := range infos {
			d.out.Path(info.Path)
			writeKnownInfo(d.out, info)
		}
	}
	return nil
}

// writeKnownInfo writes what the store knows of a path, behind the path.
func writeKnownInfo(w *wire.Writer, info *nix.PathInfo) {
	sorted := *info
	sorted.Signatures = slices.Compact(slices.Sorted(slices.Values(info.Signatures)))
	writeInfo(w, &sorted)
}

func (d *daemonServer) queryAllValidPaths(ctx context.Context) error {
	paths, err := d.store.AllPaths(ctx)
	return d.reply(err, func(w *wire.Writer) { w.Paths(sortedPaths(paths)) })
}

func (d *daemonServer) queryReferrers(ctx context.Context) error {
	p := d.in.Path(d.dir)
	if err := d.request("tell referrers"); err != nil {
		return err
	}
	referrers, err := d.store.Referrers(ctx, p)
	return d.reply(err, func(w *wire.Writer) { w.Paths(sortedPaths(referrers)) })
}

func (d *daemonServer) queryValidDerivers(ctx context.Context) error {
	p := d.in.Path(d.dir)
	if err := d.request("tell derivers"); err != nil {
		return err
	}
	var valid []nix.StorePath
	infos, err := d.backend.PathInfos(ctx, []nix.StorePath{p})
	if err == nil && len(infos) > 0 && !infos[0].Deriver.IsZero() {
		valid, err = d.backend.ValidPaths(ctx, []nix.StorePath{infos[0].Deriver})
	}
	return d.reply(err, func(w *wire.Writer) { w.Paths(valid) })
}

func (d *daemonServer) queryPathFromHashPart(ctx context.Context) error {
	part := d.in.String(wire.MaxField)
	if err := d.request("find a path by its hash part"); err != nil {
		return err
	}
	p, err := d.store.PathOfHashPart(ctx, part)
	return d.reply(err, func(w *wire.Writer) { w.Path(p) })
}

func (d *daemonServer) queryDerivationOutputMap(ctx context.Context) error {
	p := d.in.Path(d.dir)
	if err := d.request("tell a derivation's outputs"); err != nil {
		return err
	}
	drv, err := d.validDerivation(ctx, p)
	return d.reply(err, func(w *wire.Writer) {
		w.Uint64(uint64(len(drv.Outputs)))
		for _, out := range drv.Outputs {
			w.String(out.Name)
			w.Path(out.Path)
		}
	})
}

func (d *daemonServer) validDerivation(ctx context.Context, p nix.StorePath) (*nix.Derivation, error) {
	infos, err := d.backend.PathInfos(ctx, []nix.StorePath{p})
	if err == nil && len(infos) == 0 {
		err = fmt.Errorf("%s: %w", p, nix.ErrNotValid)
	}
	if err != nil {
		return nil, err
	}
	return d.derivation(ctx, infos[0])
}

// querySubstitutable knows of nothing that could be fetched: what can is found out by
// fetching it.
func (d *daemonServer) querySubstitutable(op uint64) error {
	switch {
	case op == opQuerySubstitutablePathInfo:
		d.in.Path(d.dir)
	case op == opQuerySubstitutableInfos && d.since(22):
		for range d.in.Count(wire.MaxPaths) {
			d.in.Path(d.dir)
			if d.in.String(wire.MaxField); d.in.Err() != nil { // a content address
				break
			}
		}
	default:
		d.in.EachPaths(d.dir, wire.MaxPaths, func([]nix.StorePath) {})
	}
	if err := d.request("tell what can be substituted"); err != nil {
		return err
	}
	return d.reply(nil, func(w *wire.Writer) { w.Uint64(0) })
}

func (d *daemonServer) queryMissing(ctx context.Context) error {
	wanted := d.in.Strings(serverMaxWanted, wire.MaxPath)
	if err := d.request("tell what is missing"); err != nil {
		return err
	}
	var build, unknown []nix.StorePath
	for _, word := range wanted {
		missing, err := d.missing(ctx, word)
		switch {
		case err != nil:
			return d.reply(err, nothing)
		case missing.IsZero():
		case isPath(d.dir, word):
			unknown = append(unknown, missing)
		default:
			build = append(build, missing)
		}
	}
	found, unknown, download, err := d.foresee(ctx, unknown)
	return d.reply(err, func(w *wire.Writer) {
		var fetch []nix.StorePath
		var unpacked int64
		for _, info := range found {
			fetch = append(fetch, info.Path)
			unpacked += info.NARSize
		}
		w.Paths(sortedPaths(build))
		w.Paths(sortedPaths(fetch))
		w.Paths(sortedPaths(unknown))
		w.Uint64(uint64(download))
		w.Uint64(uint64(unpacked))
	})
}

// foresee returns what would be substituted to have the missing paths and all that
// they refer to, and what nobody is known to have. As in Nix a cache that does not
// answer is only a warning.
func (d *daemonServer) foresee(ctx context.Context, missing []nix.StorePath) (found []*nix.PathInfo, unknown []nix.StorePath, download int64, err error) {
	s, ok := d.options.Substituter.(ForeseeingSubstituter)
	if !ok || !d.options.Write || len(missing) == 0 {
		return nil, missing, 0, nil
	}
	found, download, err = s.Foresee(ctx, missing)
	if err != nil {
		d.options.Logger.Warn("caches do not tell what they have", "paths", len(missing), "error", err)
		return nil, missing, 0, nil
	}
	wanted := slices.Clone(missing)
	known := make(map[nix.StorePath]bool, len(found))
	for _, info := range found {
		known[info.Path] = true
		wanted = append(wanted, info.References...)
	}
	wanted = slices.DeleteFunc(sortedPaths(wanted), func(p nix.StorePath) bool { return known[p] })
	valid, err := d.backend.ValidPaths(ctx, wanted)
	for _, p := range valid {
		known[p] = true
	}
	return found, slices.DeleteFunc(wanted, func(p nix.StorePath) bool { return known[p] }), download, err
}

func isPath(dir nix.StoreDir, word string) bool {
	_, err := dir.Parse(word)
	return err == nil
}

// missing is missingOf where, to newer clients, a derivation means its file and not
// its outputs.
func (d *daemonServer) missing(ctx context.Context, wanted string) (nix.StorePath, error) {
	p, err := d.dir.Parse(wanted)
	if err != nil || !d.since(30) {
		return d.missingOf(ctx, wanted)
	}
	valid, err := d.backend.ValidPaths(ctx, []nix.StorePath{p})
	if err != nil || len(valid) > 0 {
		return nix.StorePath{}, err
	}
	return p, nil
}

// narFromPath answers with an error, or with a NAR that breaks off where it turns out
// not to be the one that the path info promises.
func (d *daemonServer) narFromPath(ctx context.Context) error {
	p := d.in.Path(d.dir)
	if err := d.request("send a path"); err != nil {
		return err
	}
	infos, err := d.backend.PathInfos(ctx, []nix.StorePath{p})
	if err == nil && len(infos) == 0 {
		err = fmt.Errorf("send %s: %w", p, nix.ErrNotValid)
	}
	if err != nil {
		return d.reply(err, nothing)
	}
	d.out.Uint64(stderrLast)
	return d.sendNAR(ctx, infos[0])
}

func (d *daemonServer) findRoots(ctx context.Context) error {
	roots, err := d.store.Roots(ctx)
	return d.reply(err, func(w *wire.Writer) {
		w.Uint64(uint64(len(roots)))
		for _, link := range slices.Sorted(maps.Keys(roots)) {
			w.String(link)
			w.Path(roots[link])
		}
	})
}

// setOptions reads what a client would have a build do, which is passed over, and the
// caches of its configuration.
func (d *daemonServer) setOptions() error {
	for range 12 {
		d.in.Uint64()
	}
	var caches, further []string
	for range d.in.Count(serverMaxWords) {
		name, value := d.in.String(wire.MaxField), d.in.String(wire.MaxField)
		switch name {
		case "substituters":
			caches = strings.Fields(value)
		case "extra-substituters":
			further = strings.Fields(value)
		}
		if d.in.Err() != nil {
			break
		}
	}
	if err := d.request("set options"); err != nil {
		return err
	}
	if named, ok := d.options.Substituter.(NamedSubstituter); ok {
		named.Name(append(caches, further...))
	}
	return d.reply(nil, nothing)
}

package closure

import (
	"context"
	"fmt"
	"slices"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A Plan says who provides each path of a closure at its destination.
type Plan struct {
	Roots      []nix.StorePath
	Present    []nix.StorePath // valid at the destination already
	Substitute []nix.StorePath // the destination takes these from its caches
	Unknown    []*nix.PathInfo // a dry run cannot tell: substituted if a cache has them, else sent
	Send       []*nix.PathInfo // ours to send, references before referrers
	Fetch      []Offer         // taken from caches by Copy, or sent; references before referrers
}

// SendBytes is the size of the NARs to send.
func (p *Plan) SendBytes() int64 { return narBytes(p.Send) }

// FetchBytes is the size of the NARs to fetch, and what is to be downloaded for them.
func (p *Plan) FetchBytes() (nar, download int64) {
	for _, offer := range p.Fetch {
		nar += offer.Info.NARSize
		download += offer.Download
	}
	return nar, download
}

// UnknownBytes is the size of the NARs that may be substituted or sent.
func (p *Plan) UnknownBytes() int64 { return narBytes(p.Unknown) }

// Paths is the number of paths in the closure.
func (p *Plan) Paths() int {
	return len(p.Present) + len(p.Substitute) + len(p.Unknown) + len(p.Send) + len(p.Fetch)
}

func narBytes(infos []*nix.PathInfo) (n int64) {
	for _, info := range infos {
		n += info.NARSize
	}
	return n
}

// Terms are the conditions of a negotiation.
type Terms struct {
	DryRun     bool // change nothing: no locks, no substitution
	Substitute bool // let the destination take from its caches what they have
	// Caches offer paths that Copy is to take from them; nil: none.
	Caches CacheSource
}

// Negotiate asks dst which paths of c it has, and finds out how the rest gets
// there. Unless terms say otherwise both ends keep the whole closure from garbage
// collection from here on.
func Negotiate(ctx context.Context, c *Closure, src Source, dst Target, terms Terms) (*Plan, error) {
	if holder, ok := src.(Holder); ok && !terms.DryRun {
		if err := holder.Hold(ctx, c.Paths); err != nil {
			return nil, err
		}
	}
	valid, err := dst.ValidPaths(ctx, c.Paths, !terms.DryRun)
	if err != nil {
		return nil, err
	}
	plan := &Plan{Roots: c.Roots, Present: valid}
	missing := without(c.Paths, valid)
	told := true
	caches := offerer(dst, terms)
	if caches == nil {
		if plan.Substitute, told, err = substitute(ctx, dst, missing, terms); err != nil {
			return nil, err
		}
	}
	infos, err := c.missingInfos(ctx, src, without(missing, plan.Substitute))
	if err != nil {
		return nil, err
	}
	switch {
	case caches != nil:
		return plan, plan.offer(ctx, infos, caches)
	case told:
		plan.Send = infos
	default:
		plan.Unknown = infos
	}
	return plan, nil
}

// offerer is who knows what caches have before anything is taken from them: those of
// terms, or the destination, where it can tell; else nil.
func offerer(dst Target, terms Terms) Offerer {
	if terms.Caches != nil {
		return terms.Caches
	}
	if target, able := dst.(OfferingTarget); able && terms.Substitute && target.CanOffer() {
		return target
	}
	return nil
}

// offer divides infos between caches and the source, and keeps their order.
func (p *Plan) offer(ctx context.Context, infos []*nix.PathInfo, caches Offerer) error {
	if len(infos) == 0 {
		return nil
	}
	offers, err := caches.Offers(ctx, infos)
	if err != nil {
		return err
	}
	byPath := make(map[nix.StorePath]Offer, len(offers))
	for _, offer := range offers {
		byPath[offer.Info.Path] = offer
	}
	for _, info := range infos {
		if offer, ok := byPath[info.Path]; ok {
			p.Fetch = append(p.Fetch, offer)
		} else {
			p.Send = append(p.Send, info)
		}
	}
	return nil
}

// substitute has dst take what its caches have, or in a dry run tell it. Told is false
// where it cannot.
func substitute(ctx context.Context, dst Target, missing []nix.StorePath, terms Terms) (found []nix.StorePath, told bool, err error) {
	target, able := dst.(SubstitutingTarget)
	if !terms.Substitute || !able || len(missing) == 0 {
		return nil, true, nil
	}
	if !terms.DryRun {
		found, err = target.Substitute(ctx, missing)
		return found, true, err
	}
	foreseeing, able := dst.(ForeseeingTarget)
	if !able {
		return nil, false, nil
	}
	found, err = foreseeing.Substitutable(ctx, missing)
	return found, true, err
}

// without returns the paths that are not in known.
func without(paths, known []nix.StorePath) []nix.StorePath {
	set := make(map[nix.StorePath]bool, len(known))
	for _, p := range known {
		set[p] = true
	}
	var rest []nix.StorePath
	for _, p := range paths {
		if !set[p] {
			rest = append(rest, p)
		}
	}
	return rest
}

// missingInfos returns the path infos of missing, references first, asking src for
// those that the walk did not bring.
func (c *Closure) missingInfos(ctx context.Context, src Source, missing []nix.StorePath) ([]*nix.PathInfo, error) {
	var unknown []nix.StorePath
	for _, p := range missing {
		if c.infos[p] == nil {
			unknown = append(unknown, p)
		}
	}
	if len(unknown) > 0 {
		infos, err := src.PathInfos(ctx, unknown)
		if err != nil {
			return nil, err
		}
		for _, info := range infos {
			c.infos[info.Path] = info
		}
		if err := c.checkKnown(unknown); err != nil {
			return nil, err
		}
	}
	infos := make([]*nix.PathInfo, len(missing))
	for i, p := range missing {
		infos[i] = c.infos[p]
		if err := c.checkReferences(infos[i]); err != nil {
			return nil, err
		}
	}
	return Sort(infos)
}

// checkReferences returns an error if a reference of info is outside the closure.
func (c *Closure) checkReferences(info *nix.PathInfo) error {
	for _, ref := range info.References {
		if _, found := slices.BinarySearchFunc(c.Paths, ref, nix.StorePath.Compare); !found {
			return fmt.Errorf("%s refers to %s: %w in the source", info.Path, ref, nix.ErrNotValid)
		}
	}
	return nil
}

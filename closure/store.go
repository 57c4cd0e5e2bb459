// Package closure moves closures between stores: it walks one, negotiates with the
// other end what is missing there, and copies that. It declares the stores that it
// copies between.
package closure

import (
	"context"
	"errors"
	"io"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A Source is a store that paths are copied from. Its methods may be called
// concurrently. A Source may also be a ClosureInfoSource, a ClosurePathSource
// or a Holder.
type Source interface {
	// PathInfos returns what is known of those of paths that are valid.
	PathInfos(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error)
	// OpenLane returns a further stream of NARs. Where no more can be had, lanes
	// that are open go on.
	OpenLane(ctx context.Context) (SourceLane, error)
}

// A ClosureInfoSource answers for a whole closure at once. The error wraps
// nix.ErrNotValid if a root is not valid.
type ClosureInfoSource interface {
	Closure(ctx context.Context, roots []nix.StorePath) ([]*nix.PathInfo, error)
}

// A ClosurePathSource answers for a whole closure at once, without path infos.
type ClosurePathSource interface {
	ClosurePaths(ctx context.Context, roots []nix.StorePath) ([]nix.StorePath, error)
}

// An OutputSource knows the outputs of derivations.
type OutputSource interface {
	// ValidOutputs returns those outputs of derivations that are valid.
	ValidOutputs(ctx context.Context, derivations []nix.StorePath) ([]nix.StorePath, error)
}

// A Holder keeps paths from garbage collection until it is closed.
type Holder interface {
	// Hold need not wait: an error may show in a later call.
	Hold(ctx context.Context, paths []nix.StorePath) error
}

// A SourceLane delivers NARs one after another. Request may be called by one
// goroutine while another calls Next.
type SourceLane interface {
	// Request asks for a NAR ahead of time and does not wait for it.
	Request(ctx context.Context, info *nix.PathInfo) error
	// Next returns the NAR that was requested first and not yet taken. It is closed
	// before the following one is taken.
	Next(ctx context.Context) (NAR, error)
	// Lookahead is how many bytes of NARs are worth requesting ahead.
	Lookahead() int64
	// Abort ends the lane at once and wakes whoever waits for it.
	Abort()
}

// A NAR is the contents of one path on the way, to be written out or read once.
type NAR interface {
	// WriteTo writes the NAR out. A source need only be able to do this.
	io.WriterTo
	// Reader returns the NAR as a stream which its reader must check, where the
	// source has it as one. Such a source is needed for a target that reads.
	Reader() io.Reader
	io.Closer
}

// A PartialSource may deliver a PartialNAR.
type PartialSource interface {
	Source
	DeliversPartialNARs()
}

// A PartialNAR is made of what the destination has, of which nothing is certain: where it
// turns out to be wrong, a TolerantTarget gets the path from the same source once more.
type PartialNAR interface {
	NAR
	MayBeWrong()
}

// A Target is a store that paths are copied to. Its methods may be called
// concurrently.
type Target interface {
	// ValidPaths returns those of paths that are valid. With lock all of paths,
	// valid or not, are kept from garbage collection until the target is closed.
	ValidPaths(ctx context.Context, paths []nix.StorePath, lock bool) ([]nix.StorePath, error)
	// OpenLane returns a further way in. Where no more can be had, lanes that are
	// open go on.
	OpenLane(ctx context.Context) (TargetLane, error)
	// AnyOrder reports whether a path may be added before its references.
	AnyOrder() bool
}

// A SubstitutingTarget can fetch paths from caches of its own.
type SubstitutingTarget interface {
	// Substitute tries to make paths valid and returns those that are.
	Substitute(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error)
}

// A TolerantTarget's lanes are of use also after an Add whose NAR broke off: the path
// may be added again, from elsewhere.
type TolerantTarget interface {
	ToleratesBrokenNARs()
}

// A VerifyingTarget may compare what it is given with the path infos by itself.
type VerifyingTarget interface {
	// VerifiesNARs reports whether it refuses a NAR that is not what its path info
	// promises with an error that wraps nix.ErrDamaged. Such NARs are not hashed here.
	VerifiesNARs() bool
}

// A CacheSource is a source whose paths lie in caches. A path that is requested once
// more is one whose NAR was no good: it is taken from elsewhere, and if it can be had
// nowhere, reading it fails with an error that wraps ErrNowhereElse.
type CacheSource interface {
	Source
	Offerer
}

// An Offerer knows what caches have.
type Offerer interface {
	// Offers returns those of infos that caches have with the same NAR and the same
	// references, in any order.
	Offers(ctx context.Context, infos []*nix.PathInfo) ([]Offer, error)
}

// ErrNowhereElse says that a CacheSource has tried all of its caches.
var ErrNowhereElse = errors.New("there is no other cache that has it")

// An Offer is a path that a cache has.
type Offer struct {
	Info     *nix.PathInfo // with signatures as the cache has them
	Cache    string        // for people
	Download int64         // bytes
}

// A ForeseeingTarget can tell what Substitute would bring, and changes nothing.
type ForeseeingTarget interface {
	// Substitutable returns those of paths that Substitute would make valid.
	Substitutable(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error)
}

// An OfferingTarget may be able to tell what its caches have, so that the rest need not
// wait until it has fetched that.
type OfferingTarget interface {
	SubstitutingTarget
	Offerer
	// CanOffer is called behind the first answer.
	CanOffer() bool
}

// A Finisher is a target that may put off paths whose references, or locks, it waits
// for.
type Finisher interface {
	// Finish returns when done was called for every path that was added.
	Finish(ctx context.Context) error
}

// A TargetLane takes paths one after another.
type TargetLane interface {
	// Add takes one path. It returns when nar is used up; done is called once, then
	// or later and from any goroutine, with nil when the path is valid. After an
	// error of Add the lane is of no more use.
	Add(ctx context.Context, info *nix.PathInfo, nar NAR, done func(error)) error
	// Flush is called before waiting for done.
	Flush(ctx context.Context) error
	// Abort ends the lane at once and wakes whoever waits for it.
	Abort()
}

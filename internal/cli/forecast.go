package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/ui"
	"github.com/copy-closure/copy-closure/remote"
)

const (
	// forecastTime is how long deltas are computed for a dry run. What was not come to
	// is taken to shrink as the rest did.
	forecastTime = 3 * time.Second
	// forecastSigned is of how many bytes of NARs a dry run asks for the signatures of
	// bases that only the far end has.
	forecastSigned = 64 << 20
	// forecastAsked is for how many bytes of NARs a dry run of a pull has deltas sent,
	// which are thrown away.
	forecastAsked = 4 << 20
)

// A forecast is what a dry run tells beside its plan.
type forecast struct {
	deltas map[nix.StorePath]foreseenDelta // of paths to send
	bytes  int64                           // to send: NARs and deltas, before compression
	about  bool                            // some of that is estimated
	need   int64                           // space that the paths take
	room   *remote.Room                    // at the destination; nil: not known
	rate   int64                           // bytes a second; 0: not measured
}

// A foreseenDelta is what would be sent in place of a NAR.
type foreseenDelta struct {
	base  nix.StorePath
	bytes int64
	about bool // not computed: as others shrink
}

// foresee finds out what a copy would send, and changes nothing. With thorough it takes
// some round trips more.
func (r *copyRun) foresee(ctx context.Context, plan *closure.Plan, e ends) (*forecast, error) {
	f := &forecast{need: spaceFor(plan.Send), bytes: plan.SendBytes()}
	if e.far.empty || len(plan.Send) == 0 {
		return f, nil
	}
	var err error
	if f.deltas, err = r.foreseeDeltas(ctx, plan.Send, e); err != nil {
		return nil, err
	}
	for _, info := range plan.Send {
		if d, ok := f.deltas[info.Path]; ok {
			f.bytes -= info.NARSize - d.bytes
			f.about = f.about || d.about
		}
	}
	switch {
	case r.pull:
		f.room = e.local.room()
	case r.thorough:
		f.room = e.far.room(ctx, f.need)
	default:
		f.room = e.far.Room()
	}
	if r.thorough && !e.far.Forced() {
		rate, err := e.far.measureRate(ctx, r.pull)
		if err != nil {
			return nil, fmt.Errorf("measure the link: %w", err)
		}
		if f.rate = int64(rate); r.limit != 0 {
			f.rate = min(f.rate, int64(r.limit))
		}
	}
	return f, nil
}

// foreseeDeltas asks the far end for bases, where deltas would be sent.
func (r *copyRun) foreseeDeltas(ctx context.Context, send []*nix.PathInfo, e ends) (map[nix.StorePath]foreseenDelta, error) {
	store, ours := e.far.protocolStore.(*remote.Store)
	direct := e.local.store != nil && (!r.pull || e.local.nix == nil)
	if !ours || !store.OffersPeer() || !direct || !r.wantsDeltas(e.far) {
		return nil, nil
	}
	var err error
	if e.far.peer, err = store.OpenPeer(ctx, r.peerOptions(e.far)); err != nil {
		return nil, err
	}
	quick, cancel := context.WithTimeout(ctx, forecastTime)
	defer cancel()
	if r.pull {
		return r.foreseeUpdates(quick, e.far.peer, e.local.store, send)
	}
	d, err := findBases(ctx, e.far.peer, e.local.store, send, r.log)
	if err != nil {
		return nil, err
	}
	d.log = slog.New(slog.DiscardHandler) // it tells what was sent
	return d.foresee(quick, e.far.peer, send)
}

// foresee computes deltas until ctx ends, small ones first, and estimates the rest.
func (d *deltas) foresee(ctx context.Context, peer *remote.Peer, send []*nix.PathInfo) (map[nix.StorePath]foreseenDelta, error) {
	var patched []*nix.PathInfo
	for _, info := range send {
		if _, ok := d.bases[info.Path]; ok {
			patched = append(patched, info)
		}
	}
	smallFirst(patched)
	if err := d.askForSignatures(peer, d.someSigned(patched)); err != nil {
		return nil, err
	}
	sizes := make([]int64, len(patched))
	var all sync.WaitGroup
	slots := make(chan struct{}, runtime.NumCPU())
	for i, info := range patched {
		slots <- struct{}{}
		all.Go(func() {
			sizes[i] = d.size(ctx, info)
			<-slots
		})
	}
	all.Wait()
	return estimate(patched, sizes, func(p nix.StorePath) nix.StorePath { return d.bases[p].Path }), nil
}

func smallFirst(infos []*nix.PathInfo) {
	slices.SortStableFunc(infos, func(a, b *nix.PathInfo) int { return cmp.Compare(a.NARSize, b.NARSize) })
}

// someSigned are the first paths with a base that is not here, as far as their
// signatures are no burden.
func (d *deltas) someSigned(infos []*nix.PathInfo) []*nix.PathInfo {
	var some []*nix.PathInfo
	var bytes int64
	for _, info := range infos {
		if d.here[d.bases[info.Path].Path] != nil {
			continue
		}
		if bytes += info.NARSize; bytes > forecastSigned {
			break
		}
		some = append(some, info)
	}
	return some
}

// notComputed is the size of a delta that is not known.
const notComputed = -1

// size computes a delta and returns its size, or that of the NAR where that is smaller.
func (d *deltas) size(ctx context.Context, info *nix.PathInfo) int64 {
	if ctx.Err() != nil {
		return notComputed
	}
	patch, ok := d.patch(ctx, info)
	if !ok {
		return notComputed
	}
	r, w := io.Pipe()
	read := make(chan struct{})
	go func() {
		defer close(read)
		w.CloseWithError(d.store.WriteNAR(ctx, w, info.Path))
	}()
	counter := &countingWriter{most: info.NARSize}
	err := patch.Encode(counter, r)
	r.Close()
	<-read
	switch {
	case errors.Is(err, errNoShorter):
		return info.NARSize
	case err != nil:
		return notComputed
	}
	return counter.n
}

// A countingWriter counts up to a limit.
type countingWriter struct{ n, most int64 }

var errNoShorter = errors.New("the delta is no shorter than the path")

func (c *countingWriter) Write(p []byte) (int, error) {
	if c.n += int64(len(p)); c.n >= c.most {
		return 0, errNoShorter
	}
	return len(p), nil
}

// estimate makes the forecast of what was computed. Paths that are to be sent whole are
// not in it. Where nothing could be computed, a delta is taken to be as long as its path.
func estimate(infos []*nix.PathInfo, sizes []int64, base func(nix.StorePath) nix.StorePath) map[nix.StorePath]foreseenDelta {
	var of, to int64
	for i, size := range sizes {
		if size != notComputed {
			of, to = of+infos[i].NARSize, to+size
		}
	}
	shrunk := 1.0
	if of > 0 {
		shrunk = float64(to) / float64(of)
	}
	foreseen := make(map[nix.StorePath]foreseenDelta)
	for i, info := range infos {
		delta := foreseenDelta{base: base(info.Path), bytes: sizes[i]}
		if delta.bytes == notComputed {
			delta.bytes, delta.about = int64(float64(info.NARSize)*shrunk), true
		}
		if delta.about || delta.bytes < info.NARSize {
			foreseen[info.Path] = delta
		}
	}
	return foreseen
}

// size is the number of bytes for people, with a sign where it is an estimate.
func (d foreseenDelta) size() string { return aboutBytes(d.bytes, d.about) }

func aboutBytes(n int64, about bool) string {
	if about {
		return "~" + ui.Bytes(n)
	}
	return ui.Bytes(n)
}

// took is the time that a copy is likely to take; 0: not known.
func (f *forecast) took() time.Duration {
	if f.rate == 0 {
		return 0
	}
	return time.Duration(float64(f.bytes) / float64(f.rate) * float64(time.Second))
}

// sentences are the lines below the summary of a plan.
func (f *forecast) sentences() []string {
	var lines []string
	if n := len(f.deltas); n > 0 {
		lines = append(lines, fmt.Sprintf("%s as deltas: %s to send in all", ui.Paths(n), aboutBytes(f.bytes, f.about)))
	}
	if f.rate > 0 {
		lines = append(lines, fmt.Sprintf("about %s at the %s/s of one session, before compression", ui.Seconds(f.took()), ui.Bytes(f.rate)))
	}
	if f.room != nil && f.need > 0 {
		fits := ""
		if f.room.Bytes < f.need {
			fits = ": it does not fit"
		}
		lines = append(lines, fmt.Sprintf("takes about %s at the destination, where %s are free%s", ui.Bytes(f.need), ui.Bytes(f.room.Bytes), fits))
	}
	return lines
}

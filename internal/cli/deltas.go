package cli

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/copy-closure/copy-closure/internal/delta"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/ui"
	"github.com/copy-closure/copy-closure/remote"
)

const (
	worthADelta = 2 << 10 // bytes of a NAR

	// Of so many bytes of NARs the signatures of their bases are asked for, which
	// are kept in memory: about half a percent.
	mostSigned = 4 << 30
)

// Deltas are what a push sends in place of NARs to a far end that has older ones.
type deltas struct {
	store  *localstore.Store
	log    *slog.Logger
	bases  map[nix.StorePath]remote.Base   // over there, for paths that are to be sent
	here   map[nix.StorePath]*nix.PathInfo // of the bases, those that are here as well
	signed map[nix.StorePath]*signature    // by the path that is to be sent: bases only over there
	memory delta.Budget
	pace   delta.Pace
	link   func() float64 // bytes a second, 0 if not known; nil where it does not matter
}

// A signature is on its way from the far end.
type signature struct {
	ready chan struct{}    // closed when value is set
	value *delta.Signature // nil where it did not come
}

// newDeltas asks the far end for bases. It costs a round trip.
func newDeltas(ctx context.Context, peer *remote.Peer, store *localstore.Store, infos []*nix.PathInfo, log *slog.Logger) (*deltas, error) {
	d, err := findBases(ctx, peer, store, infos, log)
	if err != nil {
		return nil, err
	}
	return d, d.askForSignatures(peer, infos)
}

// findBases asks for bases, but for no signatures of them.
func findBases(ctx context.Context, peer *remote.Peer, store *localstore.Store, infos []*nix.PathInfo, log *slog.Logger) (*deltas, error) {
	d := &deltas{
		store: store, log: log,
		here:   make(map[nix.StorePath]*nix.PathInfo),
		signed: make(map[nix.StorePath]*signature),
		memory: delta.NewBudget(),
	}
	wants := worthDeltas(infos)
	if len(wants) == 0 {
		return d, nil
	}
	var err error
	if d.bases, err = peer.Bases(ctx, wants); err != nil {
		return nil, err
	}
	if err := d.findHere(ctx); err != nil {
		return nil, err
	}
	log.Info("paths over there to compute deltas against", "paths", len(d.bases), "of", len(infos), "also here", len(d.here))
	return d, nil
}

func worthDeltas(infos []*nix.PathInfo) (wants []nix.StorePath) {
	for _, info := range infos {
		if info.NARSize >= worthADelta {
			wants = append(wants, info.Path)
		}
	}
	return wants
}

// findHere looks for the far end's bases in the store of this end.
func (d *deltas) findHere(ctx context.Context) error {
	hashes := make(map[nix.StorePath]nix.Hash)
	var paths []nix.StorePath
	for _, base := range d.bases {
		if hashes[base.Path].IsZero() {
			paths = append(paths, base.Path)
		}
		hashes[base.Path] = base.NARHash
	}
	infos, err := d.store.PathInfos(ctx, paths)
	for _, info := range infos {
		if info.NARHash == hashes[info.Path] {
			d.here[info.Path] = info
		}
	}
	return err
}

// askForSignatures asks for those of bases that are not here, all at once.
func (d *deltas) askForSignatures(peer *remote.Peer, infos []*nix.PathInfo) error {
	var asked []*nix.PathInfo
	var size int64
	for _, info := range infos {
		base, ok := d.bases[info.Path]
		if !ok || d.here[base.Path] != nil || size+info.NARSize > mostSigned {
			continue
		}
		size += info.NARSize
		asked = append(asked, info)
		d.signed[info.Path] = &signature{ready: make(chan struct{})}
	}
	if len(asked) == 0 {
		return nil
	}
	channel, err := peer.OpenChannel()
	if err != nil {
		return err
	}
	go func() {
		for _, info := range asked {
			if channel.Signature(d.bases[info.Path].Path, info) != nil {
				return // the reader learns it, too
			}
		}
	}()
	go d.readSignatures(channel, asked)
	return nil
}

// readSignatures runs until all are there, or the far end is gone.
func (d *deltas) readSignatures(channel *remote.Channel, asked []*nix.PathInfo) {
	for _, info := range asked {
		s := d.signed[info.Path]
		arrival, err := channel.Next(context.Background())
		if err == nil {
			s.value, err = delta.ReadSignature(bufio.NewReader(arrival.Reader()))
			arrival.Close()
		}
		if err != nil {
			d.log.Debug("no signature of a base", "for", info.Path, "reason", err)
			s.value = nil
		}
		close(s.ready)
	}
}

// has reports whether there is a base for a path. It may be called on nil, as patch may.
func (d *deltas) has(path nix.StorePath) bool {
	return d != nil && !d.bases[path].Path.IsZero()
}

// patch returns what to send for a path, and false where that is the whole.
func (d *deltas) patch(ctx context.Context, info *nix.PathInfo) (remote.Patch, bool) {
	if !d.has(info.Path) || !d.keepsUp(info) {
		return remote.Patch{}, false
	}
	base := d.bases[info.Path]
	p := remote.Patch{Base: base.Path, Whole: storedNAR{ctx, d.store, info.Path}}
	if baseInfo := d.here[base.Path]; baseInfo != nil {
		p.Encode = func(w io.Writer, nar io.Reader) error { return d.encode(ctx, w, nar, baseInfo, info) }
		return p, true
	}
	s := d.signed[info.Path]
	if s == nil {
		return p, false
	}
	select {
	case <-s.ready:
	case <-ctx.Done():
		return p, false
	}
	p.Encode = func(w io.Writer, nar io.Reader) error { return d.encodeAgainst(ctx, w, nar, s, info) }
	return p, s.value != nil
}

// keepsUp reports whether a delta is likely to be made before the link has taken the whole.
func (d *deltas) keepsUp(info *nix.PathInfo) bool {
	if d.link == nil {
		return true
	}
	link := d.link()
	if d.pace.Keeps(link) {
		return true
	}
	d.log.Info("sent as it is, as the link is faster than deltas are made", "path", info.Path,
		"link", ui.Bytes(int64(link))+"/s", "deltas", ui.Bytes(int64(d.pace.Rate()))+"/s")
	return false
}

// reserve waits until there is memory for a delta, and has its time measured until release.
func (d *deltas) reserve(ctx context.Context, info *nix.PathInfo) (release func(), err error) {
	free, err := d.memory.Reserve(ctx, info.NARSize)
	if err != nil {
		return nil, err
	}
	d.pace.Begin(time.Now())
	return func() {
		d.pace.End(time.Now(), info.NARSize)
		free()
	}, nil
}

// A storedNAR reads the NAR of a path here. The far end compares it with what it was
// told.
type storedNAR struct {
	ctx   context.Context
	store *localstore.Store
	path  nix.StorePath
}

// WriteTo implements io.WriterTo.
func (n storedNAR) WriteTo(w io.Writer) (int64, error) {
	return 0, n.store.WriteNAR(n.ctx, w, n.path)
}

// encodeAgainst computes a delta against a base that only the far end has.
func (d *deltas) encodeAgainst(ctx context.Context, w io.Writer, nar io.Reader, s *signature, info *nix.PathInfo) error {
	release, err := d.reserve(ctx, info)
	if err != nil {
		return err
	}
	defer release()
	stats, err := delta.EncodeAgainst(w, s.value, nar, delta.Options{})
	d.tell(info, d.bases[info.Path].Path, stats, err)
	s.value = nil // it takes memory
	return err
}

// encode computes a delta against a base that is here.
func (d *deltas) encode(ctx context.Context, w io.Writer, nar io.Reader, base, info *nix.PathInfo) error {
	archive, err := d.store.OpenArchive(ctx, base.Path)
	if err != nil {
		return err
	}
	defer archive.Close()
	release, err := d.reserve(ctx, info)
	if err != nil {
		return err
	}
	defer release()
	stats, err := delta.Encode(w, archive, delta.MapReferences(base, info), nar, delta.Options{})
	d.tell(info, base.Path, stats, err)
	return err
}

func (d *deltas) tell(info *nix.PathInfo, base nix.StorePath, stats delta.Stats, err error) {
	if err != nil {
		d.log.Debug("no delta", "path", info.Path, "against", base, "reason", err)
		return
	}
	d.log.Info("sent as a delta", "path", info.Path, "against", base, "bytes", stats.Delta, "of", stats.Size)
}

package cli

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"

	"github.com/copy-closure/copy-closure/internal/delta"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/remote"
)

// Updates are what a pull asks for in place of NARs where older ones are here.
type updates struct {
	store  *localstore.Store
	log    *slog.Logger
	always bool                   // also where the link is faster
	common map[nix.StorePath]bool // bases that are over there as well

	mu    sync.Mutex
	bases map[nix.StorePath]*nix.PathInfo // by the path that is wanted; nil once that was asked for
}

// newUpdates looks for bases here, and asks the far end which of them it has. That costs a
// round trip where there are any.
func newUpdates(ctx context.Context, peer *remote.Peer, store *localstore.Store, infos []*nix.PathInfo, always bool, log *slog.Logger) (*updates, error) {
	u := &updates{store: store, always: always, log: log}
	wants := worthDeltas(infos)
	if len(wants) == 0 {
		return u, nil
	}
	var err error
	if u.bases, err = delta.FindBases(ctx, store, store.Hold, wants); err != nil {
		log.Warn("no bases for deltas", "error", err)
		return &updates{}, nil
	}
	if len(u.bases) == 0 {
		return u, nil
	}
	once := make(map[nix.StorePath]bool)
	var bases []*nix.PathInfo
	for _, base := range u.bases {
		if !once[base.Path] {
			once[base.Path] = true
			bases = append(bases, base)
		}
	}
	if u.common, err = peer.Common(ctx, bases); err != nil {
		return nil, err
	}
	there := 0
	for _, has := range u.common {
		if has {
			there++
		}
	}
	log.Info("paths here to compute deltas against", "paths", len(bases), "for", len(u.bases), "of", len(infos), "also over there", there)
	return u, nil
}

// take returns the base for a path, nil if there is none. A path is asked for as a delta
// once: a second time, the first was no good, and tried is true. It may be called on nil.
func (u *updates) take(path nix.StorePath) (base *nix.PathInfo, tried bool) {
	if u == nil {
		return nil, false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	base, ok := u.bases[path]
	if ok {
		u.bases[path] = nil
	}
	return base, ok && base == nil
}

// request asks for a path, with the signature of its base where only this end has that.
func (u *updates) request(ctx context.Context, channel *remote.Channel, r narRequest) error {
	if u.common[r.base.Path] {
		return channel.RequestUpdate(r.info, r.base.Path, u.always)
	}
	return channel.RequestUpdateOf(r.info, func(w io.Writer) error {
		archive, err := u.store.OpenArchive(ctx, r.base.Path)
		if err != nil {
			return err
		}
		defer archive.Close()
		return delta.SignFor(w, archive, delta.MapReferences(r.base, r.info), r.info)
	}, u.always)
}

// open returns the NAR of a path that was asked for as a delta.
func (u *updates) open(ctx context.Context, arrival *remote.Arrival, r narRequest) *updatedNAR {
	return &updatedNAR{ctx: ctx, updates: u, arrival: arrival, request: r}
}

// An updatedNAR is made of an older one while it is read.
type updatedNAR struct {
	ctx     context.Context
	updates *updates
	arrival *remote.Arrival
	request narRequest

	decoding sync.WaitGroup
	decoded  *io.PipeReader // nil until somebody reads
}

// MayBeWrong implements closure.PartialNAR.
func (n *updatedNAR) MayBeWrong() {}

// Reader implements closure.NAR.
func (n *updatedNAR) Reader() io.Reader {
	r, w := io.Pipe()
	n.decoded = r
	n.decoding.Go(func() { w.CloseWithError(n.decode(w)) })
	return r
}

// WriteTo implements closure.NAR.
func (n *updatedNAR) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, n.Reader()) }

// Close implements closure.NAR.
func (n *updatedNAR) Close() error {
	if n.decoded != nil {
		n.decoded.CloseWithError(errors.New("nobody reads it any more"))
		n.decoding.Wait()
	}
	return n.arrival.Close()
}

func (n *updatedNAR) decode(w io.Writer) error {
	info, base, log := n.request.info, n.request.base, n.updates.log
	isDelta, err := n.arrival.IsDelta()
	if err != nil {
		return err
	}
	if !isDelta {
		_, err := n.arrival.WriteTo(w)
		return err
	}
	archive, err := n.updates.store.OpenArchive(n.ctx, base.Path)
	if err != nil {
		return err
	}
	defer archive.Close()
	in := &countedReader{r: n.arrival.Reader()}
	if err := delta.Decode(w, archive, delta.MapReferences(base, info), bufio.NewReader(in), info.NARSize); err != nil {
		return err
	}
	log.Info("came as a delta", "path", info.Path, "against", base.Path, "bytes", in.n, "of", info.NARSize)
	return nil
}

type countedReader struct {
	r io.Reader
	n int64
}

func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

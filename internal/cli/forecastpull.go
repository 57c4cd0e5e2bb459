package cli

import (
	"context"
	"errors"
	"io"

	"github.com/copy-closure/copy-closure/internal/delta"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/remote"
)

// foreseeUpdates finds bases here, has the far end make deltas for the smallest paths until
// ctx ends, and estimates the rest. Neither end keeps anything from garbage collection. All
// are estimates: where the base is at the far end, too, less will come.
func (r *copyRun) foreseeUpdates(ctx context.Context, peer *remote.Peer, store *localstore.Store, send []*nix.PathInfo) (map[nix.StorePath]foreseenDelta, error) {
	bases, err := delta.FindBases(ctx, store, nil, worthDeltas(send))
	if err != nil {
		return nil, err
	}
	var infos []*nix.PathInfo
	for _, info := range send {
		if bases[info.Path] != nil {
			infos = append(infos, info)
		}
	}
	smallFirst(infos)
	sizes, err := askForDeltas(ctx, peer, store, infos, bases)
	if err != nil {
		r.log.Info("not all deltas were tried", "reason", err)
	}
	foreseen := estimate(infos, sizes, func(p nix.StorePath) nix.StorePath { return bases[p].Path })
	for path, d := range foreseen {
		d.about = true
		foreseen[path] = d
	}
	return foreseen, nil
}

// askForDeltas returns the sizes of the first deltas. When ctx ends, the session does.
func askForDeltas(ctx context.Context, peer *remote.Peer, store *localstore.Store, infos []*nix.PathInfo, bases map[nix.StorePath]*nix.PathInfo) ([]int64, error) {
	sizes := make([]int64, len(infos))
	for i := range sizes {
		sizes[i] = notComputed
	}
	stop := context.AfterFunc(ctx, peer.Abort)
	defer stop()
	channel, err := peer.OpenChannel()
	if err != nil {
		return sizes, err
	}
	asked, bytes := 0, int64(0)
	for _, info := range infos {
		if bytes += info.NARSize; bytes > forecastAsked {
			break
		}
		base := bases[info.Path]
		err := channel.RequestUpdateOf(info, func(w io.Writer) error {
			archive, err := store.OpenArchive(ctx, base.Path)
			if err != nil {
				return err
			}
			defer archive.Close()
			return delta.SignFor(w, archive, delta.MapReferences(base, info), info)
		}, true)
		if err != nil {
			return sizes, err
		}
		asked++
	}
	for i := range asked {
		size, err := arrivingSize(ctx, channel)
		var refused *remote.FarError
		switch {
		case err == nil:
			sizes[i] = size
		case !errors.As(err, &refused):
			return sizes, err
		}
	}
	return sizes, nil
}

// arrivingSize reads what makes a path, and returns its size.
func arrivingSize(ctx context.Context, channel *remote.Channel) (int64, error) {
	arrival, err := channel.Next(ctx)
	if err != nil {
		return 0, err
	}
	defer arrival.Close()
	if _, err := arrival.IsDelta(); err != nil {
		return 0, err
	}
	return io.Copy(io.Discard, arrival.Reader())
}

package substitute

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// present reports whether the cache has a path. Where the Writer has keys, the path's
// narinfo gets their signatures if it lacks them; one that cannot be read is not there.
func (w *Writer) present(ctx context.Context, info *nix.PathInfo, signed *signedCount) (bool, error) {
	if len(w.Keys) == 0 {
		return has(ctx, w.Files, NARInfoName(info.Path))
	}
	text, err := readFile(ctx, w.Files, NARInfoName(info.Path))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	n, err := ParseNARInfo(w.StoreDir, text)
	if err != nil || n.Path != info.Path {
		return false, nil
	}
	return true, w.resign(ctx, n, info, signed)
}

// resign signs only what our store has, too: the cache may have the path from another
// build.
func (w *Writer) resign(ctx context.Context, n *NARInfo, info *nix.PathInfo, signed *signedCount) error {
	ours, err := info.Fingerprint()
	if err != nil {
		return err
	}
	if theirs, err := n.Fingerprint(); err != nil || theirs != ours {
		signed.other.Add(1)
		return nil
	}
	sigs, err := n.SignedWith(w.Keys)
	if err != nil || slices.Equal(sigs, n.Signatures) {
		return err
	}
	n.Signatures = sigs
	signed.added.Add(1)
	return putText(ctx, w.Files, NARInfoName(n.Path), n.Text())
}

package substitute

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// Realisations are files of this directory and extension, named by their outputs, up to
// Nix 2.34. Later ones look in build-trace-v2/, by derivation paths, which such a store
// does not keep.
const (
	realisationDir = "realisations/"
	realisationExt = ".doi"
)

// RealisationName is the file of an output's realisation.
func RealisationName(id nix.DrvOutput) string { return realisationDir + id.String() + realisationExt }

func parseRealisationName(name string) (nix.DrvOutput, bool) {
	base, isIn := strings.CutPrefix(name, realisationDir)
	text, isRealisation := strings.CutSuffix(base, realisationExt)
	if !isIn || !isRealisation {
		return nix.DrvOutput{}, false
	}
	id, err := nix.ParseDrvOutput(text)
	return id, err == nil
}

// realisation answers with what was built of an output. It is signed where its path is.
func (c *storeCache) realisation(res *response, r *http.Request, id nix.DrvOutput) error {
	known, err := c.store.Realisation(r.Context(), id)
	if err != nil {
		return err
	}
	info, err := c.store.PathInfoFromHashPart(r.Context(), known.Path.HashPart())
	if err != nil {
		return err
	}
	if c.options.Sign.vouches(info) {
		known.Sign(c.options.Sign.Keys)
	}
	return newText(known.Text()).answer(res, r, "application/json")
}

// A RealisationSource is a NARSource that knows realisations.
type RealisationSource interface {
	// RealisationsOf returns those that lead to one of paths, dependencies first.
	RealisationsOf(ctx context.Context, paths []nix.StorePath) ([]*nix.Realisation, error)
}

// putRealisations puts those of paths that the cache has, and signs them.
func (w *Writer) putRealisations(ctx context.Context, infos []*nix.PathInfo) error {
	source, ok := w.Source.(RealisationSource)
	if !ok {
		return nil
	}
	paths := make([]nix.StorePath, len(infos))
	for i, info := range infos {
		paths[i] = info.Path
	}
	all, err := source.RealisationsOf(ctx, paths)
	if err != nil {
		return err
	}
	for _, r := range all {
		r.Sign(w.Keys)
		if err := w.putRealisation(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// putRealisation keeps the signatures that are in the cache. A realisation there that leads
// to another path stays: clients may have it.
func (w *Writer) putRealisation(ctx context.Context, r *nix.Realisation) error {
	name := RealisationName(r.ID)
	text, err := readFile(ctx, w.Files, name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if there, parseErr := w.StoreDir.ParseRealisation(string(text)); err == nil && parseErr == nil {
		if there.Path != r.Path {
			return nil
		}
		r.Signatures = nix.MergeSignatures(there.Signatures, r.Signatures)
	}
	if r.Text() == string(text) {
		return nil
	}
	return putText(ctx, w.Files, name, r.Text())
}

// deleteRealisations removes those that lead to one of doomed.
func (v *Inventory) deleteRealisations(ctx context.Context, files WritableFiles, doomed map[nix.StorePath]bool) error {
	list, err := v.cache.Files.(ListableFiles).List(ctx, realisationDir)
	if err != nil || len(doomed) == 0 {
		return err
	}
	for name := range list {
		if _, ok := parseRealisationName(name); !ok {
			continue
		}
		text, err := readFile(ctx, files, name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if r, err := v.cache.StoreDir.ParseRealisation(string(text)); err == nil && doomed[r.Path] {
			if err := files.Remove(ctx, name); err != nil {
				return err
			}
		}
	}
	return nil
}

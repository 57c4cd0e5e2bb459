package substitute

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/progress"
	"github.com/copy-closure/copy-closure/internal/show"
)

// ErrNoListing says that a cache cannot tell what it has.
var ErrNoListing = errors.New("this cache cannot be listed")

// An Inventory is what a cache has, as its narinfos say.
type Inventory struct {
	Infos   map[nix.StorePath]*NARInfo
	Damaged []error // one for each narinfo that cannot be used
	cache   *Cache
}

// Inventory reads all narinfos. The error wraps ErrNoListing where that is not
// possible.
func (c *Cache) Inventory(ctx context.Context) (*Inventory, error) {
	files, ok := c.Files.(ListableFiles)
	if !ok {
		return nil, fmt.Errorf("%w; name the paths that are meant", ErrNoListing)
	}
	if _, err := c.Info(ctx); err != nil {
		return nil, err
	}
	names, err := files.List(ctx, "")
	if err != nil {
		return nil, err
	}
	v := &Inventory{Infos: make(map[nix.StorePath]*NARInfo), cache: c}
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(questions)
	for name := range names {
		if path.Ext(name) != ".narinfo" {
			continue
		}
		group.Go(func() error {
			n, err := c.narInfoFile(ctx, name)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, nix.ErrDamaged):
				v.Damaged = append(v.Damaged, err)
			case errors.Is(err, fs.ErrNotExist): // deleted meanwhile
			case err != nil:
				return err
			default:
				v.Infos[n.Path] = n
			}
			return nil
		})
	}
	return v, group.Wait()
}

// narInfoFile reads a narinfo by its file's name.
func (c *Cache) narInfoFile(ctx context.Context, name string) (*NARInfo, error) {
	text, err := readFile(ctx, c.Files, name)
	if err != nil {
		return nil, err
	}
	n, err := ParseNARInfo(c.StoreDir, text)
	if err == nil && NARInfoName(n.Path) != name {
		err = fmt.Errorf("it is about %s", n.Path)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, err, nix.ErrDamaged)
	}
	return n, nil
}

// InventoryOf reads the narinfos of paths and of all that they refer to, as far as
// they are there. Those of paths that are not are an error that wraps fs.ErrNotExist.
func (c *Cache) InventoryOf(ctx context.Context, paths []nix.StorePath) (*Inventory, error) {
	if _, err := c.Info(ctx); err != nil {
		return nil, err
	}
	v := &Inventory{Infos: make(map[nix.StorePath]*NARInfo), cache: c}
	asked := make(map[nix.StorePath]bool)
	for first, round := true, paths; len(round) > 0; first = false {
		infos, err := v.ask(ctx, round, first)
		if err != nil {
			return nil, err
		}
		round = nil
		for _, n := range infos {
			v.Infos[n.Path] = n
			asked[n.Path] = true
		}
		for _, n := range infos {
			for _, ref := range n.References {
				if !asked[ref] {
					asked[ref] = true
					round = append(round, ref)
				}
			}
		}
	}
	return v, nil
}

// ask reads narinfos, many at once. Those that are missing are left out, or are an
// error if all are needed.
func (v *Inventory) ask(ctx context.Context, paths []nix.StorePath, needed bool) ([]*NARInfo, error) {
	found := make([]*NARInfo, len(paths))
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(questions)
	for i, p := range paths {
		group.Go(func() error {
			n, err := v.cache.narInfoFile(ctx, NARInfoName(p))
			switch {
			case errors.Is(err, nix.ErrDamaged):
				mu.Lock()
				v.Damaged = append(v.Damaged, err)
				mu.Unlock()
			case errors.Is(err, fs.ErrNotExist) && !needed:
			case err != nil:
				return fmt.Errorf("%s: %w", p, err)
			default:
				found[i] = n
			}
			return nil
		})
	}
	err := group.Wait()
	return slices.DeleteFunc(found, func(n *NARInfo) bool { return n == nil }), err
}

// Sorted returns the infos by their paths' names.
func (v *Inventory) Sorted() []*NARInfo {
	list := make([]*NARInfo, 0, len(v.Infos))
	for _, n := range v.Infos {
		list = append(list, n)
	}
	slices.SortFunc(list, func(a, b *NARInfo) int {
		return strings.Compare(a.Path.Name()+a.Path.HashPart(), b.Path.Name()+b.Path.HashPart())
	})
	return list
}

// Verify looks whether every reference and every NAR is there, the NARs with the size
// that their narinfo says; with contents they are read, too, and held against all
// hashes. It calls report for each finding, from any goroutine but one at a time, and
// returns an error if it could not go on.
func (v *Inventory) Verify(ctx context.Context, contents bool, meter *progress.Meter, report func(error)) error {
	var mu sync.Mutex
	tell := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		report(err)
	}
	for _, err := range v.Damaged {
		tell(err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(questions)
	if contents {
		group.SetLimit(mostPackers)
	}
	for _, n := range v.Sorted() {
		meter.Expect(1, n.NARSize)
		group.Go(func() error {
			err := errors.Join(v.checkReferences(n), v.checkNAR(ctx, n, contents, meter))
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				tell(fmt.Errorf("%s: %w", n.Path, err))
			}
			meter.Path()
			return nil
		})
	}
	return group.Wait()
}

func (v *Inventory) checkReferences(n *NARInfo) error {
	for _, ref := range n.References {
		if v.Infos[ref] == nil {
			return fmt.Errorf("it refers to %s, which the cache has not got: %w", ref, nix.ErrDamaged)
		}
	}
	return nil
}

// checkNAR looks at a NAR, or reads it.
func (v *Inventory) checkNAR(ctx context.Context, n *NARInfo, contents bool, meter *progress.Meter) error {
	if contents || !strings.HasPrefix(n.URL, "nar/") {
		return v.readNAR(ctx, n, meter)
	}
	files, ok := v.cache.Files.(WritableFiles)
	if !ok {
		return v.readNAR(ctx, n, meter)
	}
	size, err := files.Size(ctx, n.URL)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("its NAR %s is missing: %w", show.URL(n.URL), nix.ErrDamaged)
	case err != nil:
		return err
	case n.FileSize > 0 && size >= 0 && size != n.FileSize:
		return fmt.Errorf("its NAR %s has %d bytes, expected %d: %w", show.URL(n.URL), size, n.FileSize, nix.ErrDamaged)
	}
	return nil
}

func (v *Inventory) readNAR(ctx context.Context, n *NARInfo, meter *progress.Meter) error {
	r, err := v.cache.Open(ctx, n)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("its NAR %s is missing: %w", show.URL(n.URL), nix.ErrDamaged)
	}
	if err != nil {
		return err
	}
	defer r.Close()
	hash := sha256.New()
	size, err := io.Copy(io.MultiWriter(hash, &counter{meter: meter}), r)
	if err != nil {
		return err
	}
	return n.CheckNAR(nix.SHA256Hash([sha256.Size]byte(hash.Sum(nil))), size)
}

// Delete removes paths: first those that refer to others, and of each first the
// narinfo. It refuses, and removes nothing, if a path that stays refers to one of them,
// or if it cannot tell because of a damaged narinfo. A NAR that another path uses, too,
// stays. What killed processes have left goes, too. It returns the bytes that are gone.
func (v *Inventory) Delete(ctx context.Context, paths []nix.StorePath) (freed int64, err error) {
	files, ok := v.cache.Files.(WritableFiles)
	if !ok {
		return 0, errors.New("this cache cannot be changed")
	}
	doomed, err := v.doomed(paths)
	if err != nil {
		return 0, err
	}
	if err := v.deleteRealisations(ctx, files, doomed); err != nil {
		return 0, err
	}
	for _, p := range v.referrersFirst(doomed) {
		n := v.Infos[p]
		if err := files.Remove(ctx, NARInfoName(p)); err != nil {
			return freed, err
		}
		delete(v.Infos, p)
		if err := files.Remove(ctx, listingName(p)); err != nil {
			return freed, err
		}
		if v.usesNAR(n.URL) || !isNARName(n.URL) {
			continue
		}
		if err := files.Remove(ctx, n.URL); err != nil {
			return freed, err
		}
		freed += n.FileSize
	}
	stray, err := v.deleteStrays(ctx, files)
	return freed + stray, err
}

// isNARName reports whether a narinfo's URL can name a NAR of the same cache. A narinfo that
// somebody else wrote must not make Delete remove another path's narinfo, or a file elsewhere.
func isNARName(name string) bool {
	return checkFileName(name) == nil && name != CacheInfoName && path.Ext(name) != ".narinfo"
}

// doomed checks that paths may be deleted.
func (v *Inventory) doomed(paths []nix.StorePath) (map[nix.StorePath]bool, error) {
	if len(v.Damaged) > 0 {
		return nil, fmt.Errorf("what refers to a path cannot be told while a narinfo is damaged: %w", v.Damaged[0])
	}
	doomed := make(map[nix.StorePath]bool)
	for _, p := range paths {
		if v.Infos[p] == nil {
			return nil, fmt.Errorf("%s: the cache has not got it: %w", p, nix.ErrNotValid)
		}
		doomed[p] = true
	}
	for _, n := range v.Sorted() {
		if doomed[n.Path] {
			continue
		}
		for _, ref := range n.References {
			if doomed[ref] {
				return nil, fmt.Errorf("%s stays: %s refers to it; delete that first, or with it", ref, n.Path)
			}
		}
	}
	return doomed, nil
}

// referrersFirst sorts paths so that none comes before one that refers to it.
func (v *Inventory) referrersFirst(paths map[nix.StorePath]bool) []nix.StorePath {
	var sorted []nix.StorePath
	seen := make(map[nix.StorePath]bool)
	var visit func(nix.StorePath)
	visit = func(p nix.StorePath) {
		if seen[p] || !paths[p] {
			return
		}
		seen[p] = true
		for _, ref := range v.Infos[p].References {
			visit(ref)
		}
		sorted = append(sorted, p)
	}
	for _, n := range v.Sorted() {
		visit(n.Path)
	}
	slices.Reverse(sorted)
	return sorted
}

func (v *Inventory) usesNAR(url string) bool {
	for _, n := range v.Infos {
		if n.URL == url {
			return true
		}
	}
	return false
}

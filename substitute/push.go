package substitute

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/progress"
)

// A NARSource is the store that paths are put into a cache from.
type NARSource interface {
	// WriteNAR may have written part of p's contents when it fails.
	WriteNAR(ctx context.Context, w io.Writer, p nix.StorePath) error
}

// A Writer puts paths into a cache. Whatever happens, and whoever else writes: what
// readers find there is complete. A path's narinfo is the last of it to appear, after
// those of all that the path refers to.
type Writer struct {
	Files       WritableFiles
	StoreDir    nix.StoreDir
	Source      NARSource
	Compression Compression     // for which CheckWritable returned nil
	Level       int             // 0: the usual one
	Keys        []nix.SecretKey // sign all that is put, and what is there already
	Meter       *progress.Meter // of uncompressed bytes; nil: none
}

// A PushResult says what a push has done.
type PushResult struct {
	Present  int   // paths that were there already
	Signed   int   // of these: those that have got signatures
	Other    int   // of these: those with other contents than ours, which are not signed
	Pushed   int   // paths
	NARBytes int64 // of these
	Sent     int64 // bytes of compressed NARs; those that were there are not sent again
}

const (
	pushLanes = 32      // paths under way at once
	pushRoom  = 1 << 30 // bytes of NARs under way at once, which take temporary files
	questions = 64      // small requests at once
	// mostPackers bounds the memory: a packer has about 10 MiB.
	mostPackers = 8
)

// made describes a cache of ours. With WantMassQuery Nix looks for many paths at once
// there, and it does so before it asks cache.nixos.org, whose priority is 40.
func (w *Writer) made() CacheInfo {
	return CacheInfo{StoreDir: w.StoreDir, WantMassQuery: true, Priority: 30}
}

// Push puts those of infos into the cache that it lacks. All that they refer to must be
// among infos, or in the cache. The contents are compared with what infos say: the
// error wraps nix.ErrDamaged where they differ, and the path is not put.
func (w *Writer) Push(ctx context.Context, infos []*nix.PathInfo) (PushResult, error) {
	if err := w.prepare(ctx); err != nil {
		return PushResult{}, err
	}
	var signed signedCount
	missing, err := w.missing(ctx, infos, &signed)
	if err != nil {
		return PushResult{}, err
	}
	p := newPush(w, missing)
	if err = p.run(ctx, missing); err == nil {
		err = w.putRealisations(ctx, infos)
	}
	return PushResult{
		Present: len(infos) - len(missing), Signed: int(signed.added.Load()), Other: int(signed.other.Load()),
		Pushed:   int(p.pushed.Load()),
		NARBytes: p.narBytes.Load(), Sent: p.sent.Load(),
	}, err
}

// A signedCount counts paths that were there already.
type signedCount struct{ added, other atomic.Int64 }

// prepare makes a cache of what is none yet, and tidies up.
func (w *Writer) prepare(ctx context.Context) error {
	if files, ok := w.Files.(SweptFiles); ok {
		if err := files.Sweep(ctx); err != nil {
			return fmt.Errorf("delete what killed pushes have left: %w", err)
		}
	}
	text, err := readFile(ctx, w.Files, CacheInfoName)
	if errors.Is(err, fs.ErrNotExist) {
		return putText(ctx, w.Files, CacheInfoName, w.made().Text())
	}
	if err == nil {
		_, err = ParseCacheInfo(w.StoreDir, text)
	}
	return err
}

func putText(ctx context.Context, files WritableFiles, name, text string) error {
	return files.Put(ctx, name, strings.NewReader(text), int64(len(text)))
}

// missing returns the infos whose narinfo the cache has not got.
func (w *Writer) missing(ctx context.Context, infos []*nix.PathInfo, signed *signedCount) ([]*nix.PathInfo, error) {
	there := make([]bool, len(infos))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(questions)
	for i, info := range infos {
		group.Go(func() (err error) {
			there[i], err = w.present(ctx, info, signed)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var missing []*nix.PathInfo
	among := make(map[nix.StorePath]bool)
	for i, info := range infos {
		among[info.Path] = true
		if !there[i] {
			missing = append(missing, info)
		}
	}
	return missing, w.checkReferences(ctx, missing, among)
}

// checkReferences wants every reference among the paths or in the cache.
func (w *Writer) checkReferences(ctx context.Context, missing []*nix.PathInfo, among map[nix.StorePath]bool) error {
	for _, info := range missing {
		for _, ref := range info.References {
			if among[ref] {
				continue
			}
			found, err := has(ctx, w.Files, NARInfoName(ref))
			if err == nil && !found {
				err = fmt.Errorf("%s refers to %s, which is neither in the cache nor put into it", info.Path, ref)
			}
			if err != nil {
				return err
			}
			among[ref] = true
		}
	}
	return nil
}

func has(ctx context.Context, files WritableFiles, name string) (bool, error) {
	_, err := files.Size(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// A push is one call of Push.
type push struct {
	*Writer
	done    map[nix.StorePath]chan struct{} // closed when the path is in the cache
	lanes   chan struct{}
	room    *semaphore.Weighted
	packers chan *packer
	small   chan struct{} // narinfos being put

	pushed, narBytes, sent atomic.Int64
}

func newPush(w *Writer, missing []*nix.PathInfo) *push {
	p := &push{
		Writer:  w,
		done:    make(map[nix.StorePath]chan struct{}, len(missing)),
		lanes:   make(chan struct{}, pushLanes),
		room:    semaphore.NewWeighted(pushRoom),
		packers: make(chan *packer, min(runtime.NumCPU(), mostPackers)),
		small:   make(chan struct{}, questions),
	}
	for _, info := range missing {
		p.done[info.Path] = make(chan struct{})
		w.Meter.Expect(1, info.NARSize)
	}
	for range cap(p.packers) {
		p.packers <- &packer{files: w.Files, compression: w.Compression, level: w.Level, apart: len(missing) < cap(p.packers)}
	}
	return p
}

// run begins with the largest, so that no processor is left alone with it in the end.
func (p *push) run(ctx context.Context, missing []*nix.PathInfo) error {
	missing = slices.Clone(missing)
	slices.SortStableFunc(missing, func(a, b *nix.PathInfo) int { return cmp.Compare(b.NARSize, a.NARSize) })
	group, ctx := errgroup.WithContext(ctx)
	for _, info := range missing {
		select {
		case p.lanes <- struct{}{}:
		case <-ctx.Done():
			return cmp.Or(group.Wait(), context.Cause(ctx))
		}
		group.Go(func() error {
			n, err := p.contents(ctx, info)
			<-p.lanes
			if err == nil {
				err = p.announce(ctx, n)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", info.Path, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// contents puts all of a path but its narinfo, which it returns.
func (p *push) contents(ctx context.Context, info *nix.PathInfo) (n *NARInfo, err error) {
	defer p.Meter.Start(info.Path.Name())()
	weight := min(info.NARSize, pushRoom)
	if err := p.room.Acquire(ctx, weight); err != nil {
		return nil, context.Cause(ctx)
	}
	defer p.room.Release(weight)
	packed, err := p.pack(ctx, info)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, packed.close()) }()
	hash := packed.nar.sum()
	n = &NARInfo{
		PathInfo: *info, URL: "nar/" + hash.Nix32() + p.Compression.suffix(), Compression: p.Compression,
		FileHash: hash, FileSize: packed.nar.size,
	}
	if n.Signatures, err = info.SignedWith(p.Keys); err != nil {
		return nil, err
	}
	if err := packed.listing.put(ctx, p.Files, listingName(info.Path)); err != nil {
		return nil, err
	}
	return n, p.putNAR(ctx, packed.nar, n)
}

// putNAR leaves out what a push that was interrupted has put, or one for another path
// with the same contents.
func (p *push) putNAR(ctx context.Context, nar *spool, n *NARInfo) error {
	size, err := p.Files.Size(ctx, n.URL)
	switch {
	case err == nil && size == n.FileSize:
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	p.sent.Add(n.FileSize)
	return nar.put(ctx, p.Files, n.URL)
}

// pack waits for a packer.
func (p *push) pack(ctx context.Context, info *nix.PathInfo) (*packed, error) {
	select {
	case packer := <-p.packers:
		defer func() { p.packers <- packer }()
		return packer.pack(ctx, p.Source, info, p.Meter)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// announce puts the narinfo as soon as those of all references are there.
func (p *push) announce(ctx context.Context, n *NARInfo) error {
	for _, ref := range n.References {
		done, ours := p.done[ref]
		if !ours || ref == n.Path {
			continue
		}
		select {
		case <-done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	p.small <- struct{}{}
	defer func() { <-p.small }()
	if err := putText(ctx, p.Files, NARInfoName(n.Path), n.Text()); err != nil {
		return err
	}
	close(p.done[n.Path])
	p.pushed.Add(1)
	p.narBytes.Add(n.NARSize)
	p.Meter.Path()
	return nil
}

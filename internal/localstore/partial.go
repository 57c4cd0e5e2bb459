package localstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
)

// WorthKeeping is the least of a NAR, in bytes, that is kept when it breaks off.
const WorthKeeping = 1 << 20

// Limits on partial paths. Whatever is beyond them goes when an import begins, and when a
// further one is kept.
const (
	mostPartials     = 16
	mostPartialBytes = 16 << 30
	partialAge       = 7 * 24 * time.Hour
)

// A partial is the beginning of a NAR, kept as the tree that was made of it when its
// Import was interrupted. Nothing vouches for it: it is read again, and the whole NAR
// hashed, when an import goes on from there.
//
// The tree lies in the state directory. Where it cannot be moved there from the store, as
// that is on another mount, it stays in the store under a name with the same hash part,
// which Nix's collector leaves alone as long as the path is a temporary root, and the
// state directory has a link to it.
type partial struct {
	narHash nix.Hash // that the whole was to have
	size    int64    // bytes from its start
	path    string   // in the state directory
	kept    time.Time
}

// A partial tree's name is the hash part of its path, the NAR hash, and its size.
func partialName(p nix.StorePath, narHash nix.Hash, size int64) string {
	return fmt.Sprintf("%s-%s-%d", p.HashPart(), nix.EncodeNix32(narHash.Bytes()), size)
}

func parsePartial(dir string, entry fs.DirEntry) (hashPart string, _ partial, ok bool) {
	info, err := entry.Info()
	words := strings.Split(entry.Name(), "-")
	if err != nil || len(words) != 3 {
		return "", partial{}, false
	}
	narHash, hashErr := nix.ParseHash("sha256:" + words[1])
	size, sizeErr := strconv.ParseInt(words[2], 10, 64)
	p := partial{narHash, size, filepath.Join(dir, entry.Name()), info.ModTime()}
	return words[0], p, hashErr == nil && sizeErr == nil && size > 0
}

func (s *Store) partialDir() string { return s.config.state("copy-closure/partial") }

// partialTree returns where the tree of a partial path is.
func (s *Store) partialTree(p partial) string {
	there := filepath.Join(s.config.RealDir, filepath.Base(p.path))
	if target, err := os.Readlink(p.path); err == nil && target == there {
		return there
	}
	return p.path
}

// KeepPartials makes the import keep what it has of a large path when the NAR breaks
// off, for OpenPartial in this import or a later one. It is called before Add. Nothing is
// kept of paths for which vouched returns false: their contents are checked at the end
// only, so whoever may send them could fill the disk. A nil vouched means all.
func (im *Import) KeepPartials(vouched func(*nix.PathInfo) bool) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.partials != nil {
		return
	}
	im.vouched = vouched
	im.store.prunePartials()
	im.partials = make(map[string]partial)
	im.store.listPartials(func(hashPart string, p partial) {
		if p.size > im.partials[hashPart].size {
			im.partials[hashPart] = p
		}
	})
}

// listPartials calls found for each partial tree.
func (s *Store) listPartials(found func(hashPart string, p partial)) {
	entries, err := os.ReadDir(s.partialDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Debug("cannot list partial paths", "error", err)
	}
	for _, entry := range entries {
		if hashPart, p, ok := parsePartial(s.partialDir(), entry); ok {
			found(hashPart, p)
		}
	}
}

// Partial returns how much is kept of a path's NAR, and the hash that this was to have. The
// size is 0 if nothing is.
func (im *Import) Partial(p nix.StorePath) (narHash nix.Hash, size int64) {
	kept := im.partial(p)
	return kept.narHash, kept.size
}

func (im *Import) partial(p nix.StorePath) partial {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.partials[p.HashPart()]
}

// OpenPartial returns the first size bytes of the NAR that info tells of. They may be
// wrong: an Add that begins with them fails with nix.ErrDamaged then, and what was kept is
// gone, as it is when reading fails.
func (im *Import) OpenPartial(ctx context.Context, info *nix.PathInfo, size int64) (io.ReadCloser, error) {
	p := im.partial(info.Path)
	if p.narHash != info.NARHash || size > p.size {
		return nil, fmt.Errorf("%d bytes of %s are not kept here", size, info.Path)
	}
	tree, err := nar.Index(ctx, im.store.partialTree(p))
	if err == nil && tree.Size() < size {
		err = errors.Join(fmt.Errorf("%s is shorter than its name says", p.path), tree.Close())
	}
	if err != nil {
		im.dropPartial(info.Path)
		return nil, err
	}
	return &partialReader{io.NewSectionReader(tree, 0, size), tree, im, info.Path}, nil
}

// A partialReader drops the partial tree that cannot be read.
type partialReader struct {
	io.Reader
	io.Closer
	im   *Import
	path nix.StorePath
}

func (r *partialReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && err != io.EOF {
		r.im.dropPartial(r.path)
	}
	return n, err
}

// dropPartial deletes what is kept of a path.
func (im *Import) dropPartial(path nix.StorePath) {
	im.mu.Lock()
	p := im.partials[path.HashPart()]
	delete(im.partials, path.HashPart())
	im.mu.Unlock()
	if p.size > 0 {
		im.store.removePartial(p)
	}
}

func (s *Store) removePartial(p partial) {
	if err := errors.Join(nar.RemoveAll(s.partialTree(p)), nar.RemoveAll(p.path)); err != nil {
		s.log.Warn("cannot delete a partial path", "path", p.path, "error", err)
	}
}

// keep moves what was made of a path out of the store, if err says that it is worth it.
// The caller has the path's lock.
func (im *Import) keep(e *entry, err error) {
	var early *nar.BrokenError
	old := im.partial(e.info.Path)
	if !errors.As(err, &early) || early.Offset < WorthKeeping || old.narHash == e.info.NARHash && early.Offset <= old.size {
		return
	}
	if !im.keeps(e.info) {
		return
	}
	p := partial{narHash: e.info.NARHash, size: early.Offset}
	name := partialName(e.info.Path, p.narHash, p.size)
	if p.path, err = im.store.moveAside(im.tree(e), name); err != nil {
		im.store.log.Debug("cannot keep a partial path", "path", e.info.Path, "error", err)
		return
	}
	im.dropPartial(e.info.Path)
	im.mu.Lock()
	im.partials[e.info.Path.HashPart()] = p
	im.mu.Unlock()
	im.store.log.Info("keeping what has come", "path", e.info.Path, "bytes", p.size)
	im.store.prunePartials()
}

// keeps reports whether a path may be kept in part.
func (im *Import) keeps(info *nix.PathInfo) bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.partials != nil && (im.vouched == nil || im.vouched(info))
}

// moveAside moves a tree out of its path, and returns where it is found again.
func (s *Store) moveAside(tree, name string) (path string, err error) {
	if err := os.MkdirAll(s.partialDir(), 0o700); err != nil {
		return "", err
	}
	path = filepath.Join(s.partialDir(), name)
	err = os.Rename(tree, path)
	if errors.Is(err, unix.EXDEV) {
		stays := filepath.Join(s.config.RealDir, name)
		return path, errors.Join(os.Rename(tree, stays), os.Symlink(stays, path))
	}
	if err == nil {
		err = os.Chtimes(path, time.Now(), time.Now())
	}
	return path, err
}

// prunePartials deletes partial trees that are too old, too large or too many; of several,
// the newest stay.
func (s *Store) prunePartials() {
	var all []partial
	s.listPartials(func(_ string, p partial) { all = append(all, p) })
	slices.SortFunc(all, func(a, b partial) int { return b.kept.Compare(a.kept) })
	var sum int64
	kept := 0
	for _, p := range all {
		if kept == mostPartials || p.size > mostPartialBytes-sum || time.Since(p.kept) > partialAge {
			s.removePartial(p)
			continue
		}
		kept++
		sum += p.size
	}
}

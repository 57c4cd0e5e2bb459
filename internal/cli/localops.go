package cli

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/remote"
)

// This file has what the commands about the local store need, for a store that is read
// and written directly and for one behind a daemon or a nix-store.

// errNeedsDaemon says that nix-store --serve cannot do what is asked of it.
var errNeedsDaemon = errors.New("nix-store cannot do this; it needs the store itself, or a Nix daemon")

// infos returns what the store knows of paths. The error wraps nix.ErrNotValid if one is
// not valid.
func (l *localEnd) infos(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error) {
	found, err := l.source.PathInfos(ctx, paths)
	if err != nil {
		return nil, err
	}
	known := make(map[nix.StorePath]*nix.PathInfo, len(found))
	for _, info := range found {
		known[info.Path] = info
	}
	infos := make([]*nix.PathInfo, len(paths))
	for i, p := range paths {
		if infos[i] = known[p]; infos[i] == nil {
			return nil, fmt.Errorf("%s: %w", p, nix.ErrNotValid)
		}
	}
	return infos, nil
}

// closure returns the infos of paths and all that they refer to.
func (l *localEnd) closure(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error) {
	if l.store != nil {
		return l.store.Closure(ctx, paths)
	}
	all, err := closure.Walk(ctx, l.source, paths)
	if err != nil {
		return nil, err
	}
	return l.infos(ctx, all.Paths)
}

// allPaths returns all valid paths.
func (l *localEnd) allPaths(ctx context.Context) ([]nix.StorePath, error) {
	if l.store != nil {
		return l.store.AllPaths(ctx)
	}
	if daemon, ok := l.nix.(*remote.Daemon); ok {
		return daemon.AllPaths(ctx)
	}
	return nil, errNeedsDaemon
}

// addTree adds a file or a directory under a name.
func (l *localEnd) addTree(ctx context.Context, name, path string) (nix.StorePath, error) {
	if l.nix == nil {
		info, err := l.store.AddTree(ctx, name, path)
		if err != nil {
			return nix.StorePath{}, err
		}
		return info.Path, nil
	}
	p, err := l.addTreeThroughNix(ctx, name, path)
	if err != nil {
		return p, fmt.Errorf("add %s: %w", path, err)
	}
	return p, nil
}

// addTreeThroughNix finds references only where Nix tells what is valid, as nix-store
// --add never does.
func (l *localEnd) addTreeThroughNix(ctx context.Context, name, path string) (nix.StorePath, error) {
	valid, err := l.allPaths(ctx)
	if err != nil && !errors.Is(err, errNeedsDaemon) {
		return nix.StorePath{}, err
	}
	info, err := localstore.DescribeTree(ctx, storeDir(), name, path, valid)
	if err != nil {
		return nix.StorePath{}, err
	}
	if err := l.holdThroughNix(ctx, info.References); err != nil {
		return info.Path, err
	}
	lane, err := l.nix.OpenLane(ctx)
	if err != nil {
		return info.Path, err
	}
	added := make(chan error, 1)
	err = lane.Add(ctx, info, treeNAR{ctx, path}, func(err error) { added <- err })
	if err == nil {
		err = lane.Flush()
	}
	if err == nil {
		err = <-added
	}
	return info.Path, err
}

// A treeNAR is the archive of files that are not in a store.
type treeNAR struct {
	ctx  context.Context
	path string
}

// WriteTo implements io.WriterTo.
func (n treeNAR) WriteTo(w io.Writer) (int64, error) { return 0, nar.Dump(n.ctx, w, n.path) }

// WriteNAR implements substitute.NARSource. Through Nix each call that is under way has
// a session of its own.
func (l *localEnd) WriteNAR(ctx context.Context, w io.Writer, p nix.StorePath) error {
	if l.store != nil {
		return l.store.WriteNAR(ctx, w, p)
	}
	infos, err := l.infos(ctx, []nix.StorePath{p})
	if err != nil {
		return err
	}
	lane, err := l.lanes.take(ctx, l.source)
	if err != nil {
		return err
	}
	if err := lane.Request(ctx, infos[0]); err != nil {
		return err
	}
	delivery, err := lane.Next(ctx)
	if err != nil {
		return err
	}
	_, err = delivery.WriteTo(w)
	if err = errors.Join(err, delivery.Close()); err == nil {
		l.lanes.give(lane)
	}
	return err
}

// Lanes are sessions that wait for their next NAR.
type lanes struct {
	mu   sync.Mutex
	idle []closure.SourceLane
}

func (s *lanes) take(ctx context.Context, source closure.Source) (closure.SourceLane, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.idle); n > 0 {
		lane := s.idle[n-1]
		s.idle = s.idle[:n-1]
		return lane, nil
	}
	return source.OpenLane(ctx)
}

func (s *lanes) give(lane closure.SourceLane) {
	s.mu.Lock()
	s.idle = append(s.idle, lane)
	s.mu.Unlock()
}

// verify compares the contents of paths with their hashes; nil is all of them.
func (l *localEnd) verify(ctx context.Context, paths []nix.StorePath, report func(nix.StorePath, error)) (err error) {
	if l.store != nil {
		return l.store.Verify(ctx, paths, report)
	}
	if paths == nil {
		if paths, err = l.allPaths(ctx); err != nil {
			return err
		}
	}
	infos, err := l.infos(ctx, paths)
	if err != nil {
		return err
	}
	for _, info := range infos {
		hash, size := sha256.New(), new(byteCount)
		err := l.WriteNAR(ctx, io.MultiWriter(hash, size), info.Path)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			err = info.CheckNAR(nix.SHA256Hash([sha256.Size]byte(hash.Sum(nil))), int64(*size))
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", info.Path, err)
		}
		report(info.Path, err)
	}
	return nil
}

// A byteCount counts what is written to it.
type byteCount int64

func (n *byteCount) Write(p []byte) (int, error) {
	*n += byteCount(len(p))
	return len(p), nil
}

// delete deletes paths. How much that frees is not known where Nix does it.
func (l *localEnd) delete(ctx context.Context, paths []nix.StorePath) (freed int64, known bool, err error) {
	if l.nix == nil {
		freed, err = l.store.Delete(ctx, paths)
		return freed, true, err
	}
	words := []string{"nix-store", "--delete"}
	for _, p := range paths {
		words = append(words, p.String())
	}
	return 0, false, l.runNix(ctx, words...)
}

// addSignatures gives a path further signatures and returns how many it had not got.
func (l *localEnd) addSignatures(ctx context.Context, info *nix.PathInfo, signatures []string) (int, error) {
	if l.nix == nil {
		return l.store.AddSignatures(ctx, info.Path, signatures)
	}
	daemon, ok := l.nix.(*remote.Daemon)
	if !ok {
		return 0, errNeedsDaemon
	}
	more := *info
	more.Signatures = slices.DeleteFunc(slices.Clone(signatures), func(s string) bool { return slices.Contains(info.Signatures, s) })
	if len(more.Signatures) == 0 {
		return 0, nil
	}
	return len(more.Signatures), daemon.AddSignatures(ctx, []*nix.PathInfo{&more})
}

// A treeFile is a file below a store path.
type treeFile struct {
	name   string // relative to what is listed
	mode   fs.FileMode
	size   int64
	target string // of a link
}

// listTree calls fn for the files at or below what lies inside of p.
func (l *localEnd) listTree(ctx context.Context, p nix.StorePath, inside string, fn func(treeFile) error) error {
	if l.store == nil {
		return l.listNAR(ctx, p, inside, fn)
	}
	top := filepath.Join(l.store.RealPath(p), inside)
	return filepath.WalkDir(top, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		target, err := os.Readlink(name)
		if err != nil {
			target = ""
		}
		return fn(treeFile{filepath.Join(".", name[len(top):]), info.Mode(), info.Size(), target})
	})
}

// listNAR is listTree through Nix, which has no cheaper answer.
func (l *localEnd) listNAR(ctx context.Context, p nix.StorePath, inside string, fn func(treeFile) error) error {
	r, w := io.Pipe()
	written := make(chan struct{})
	go func() {
		defer close(written)
		w.CloseWithError(l.WriteNAR(ctx, w, p))
	}()
	err := eachFile(nar.NewReader(r), inside, fn)
	r.CloseWithError(errors.Join(err, io.ErrClosedPipe))
	<-written
	return err
}

func eachFile(r *nar.Reader, inside string, fn func(treeFile) error) error {
	found := false
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			if !found {
				return &fs.PathError{Op: "list", Path: inside, Err: fs.ErrNotExist}
			}
			return nil
		}
		if err != nil {
			return err
		}
		below, ok := strings.CutPrefix(e.Path, inside)
		if !ok || inside != "" && below != "" && below[0] != '/' {
			continue
		}
		found = true
		if err := fn(fileOf(e, filepath.Join(".", below))); err != nil {
			return err
		}
	}
}

// fileOf is an entry of a NAR as it is in a store.
func fileOf(e *nar.Entry, name string) treeFile {
	f := treeFile{name: name, mode: 0o444, size: e.Size}
	switch {
	case e.Kind == nar.Directory:
		f.mode = fs.ModeDir | 0o555
	case e.Kind == nar.Symlink:
		f.mode, f.size, f.target = fs.ModeSymlink|0o777, int64(len(e.Target)), e.Target
	case e.Executable:
		f.mode = 0o555
	}
	return f
}

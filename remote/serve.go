package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// Commands of the serve protocol.
const (
	cmdQueryValidPaths = 1
	cmdQueryPathInfos  = 2
	cmdDumpStorePath   = 3
	cmdImportPaths     = 4
	cmdQueryClosure    = 7
	cmdAddToStoreNar   = 9
)

// Options say how a far store is used. The zero value is usable.
type Options struct {
	StoreDir nix.StoreDir // default /nix/store
	Spread   int          // sessions over which a long answer is spread; 0 or 1: one
	Early    bool         // begin those before it is known whether they are needed
	Logger   *slog.Logger // nil discards
}

// A Store is a store behind sessions of Nix's serve protocol. Its methods may be
// called concurrently; requests of one session are pipelined.
type Store struct {
	*sessions
	spread int
	early  early

	openLane func(ctx context.Context) (io.ReadWriteCloser, error) // for a Peer
	joined   sync.WaitGroup                                        // lanes of that
}

func newStore(ctx context.Context, open opener, o Options) (*Store, error) {
	all, err := openSessions(ctx, open, serveDialect{}, o)
	if err != nil {
		return nil, err
	}
	s := &Store{sessions: all, spread: max(o.Spread, 1)}
	s.lanes = s
	return s, nil
}

// ValidPaths returns those of paths that are valid. With lock the far end keeps
// all of them from garbage collection until Close, as far as it is allowed to;
// with substitute it first tries to fetch what is missing from its caches.
func (s *Store) ValidPaths(ctx context.Context, paths []nix.StorePath, lock, substitute bool) ([]nix.StorePath, error) {
	var valid []nix.StorePath
	s.rounds.Add(1)
	err := s.first.ask(ctx, "ask which paths are valid", func(w *wire.Writer) {
		writeValidPaths(w, paths, lock, substitute)
	}, func(r *wire.Reader) error {
		valid = r.Paths(s.dir, len(paths))
		return checkSubset("valid paths", valid, paths)
	})
	return valid, err
}

func writeValidPaths(w *wire.Writer, paths []nix.StorePath, lock, substitute bool) {
	w.Uint64(cmdQueryValidPaths)
	w.Bool(lock)
	w.Bool(substitute)
	w.Paths(paths)
}

// Hold asks the far end to keep paths from garbage collection until Close, and does
// not wait: an error of the session shows in the next request.
func (s *Store) Hold(ctx context.Context, paths []nix.StorePath) error {
	k := &call{
		what: "lock paths",
		read: func(r *wire.Reader) error { r.Paths(s.dir, len(paths)); return r.Err() },
		done: func(error) {},
	}
	return s.first.send(k, false, func(w *wire.Writer) error {
		writeValidPaths(w, paths, true, false)
		return nil
	})
}

// ClosurePaths returns the closure of roots, roots included, in no useful order;
// with outputs those of derivations belong to it. An error wraps nix.ErrNotValid if
// a root is not valid.
func (s *Store) ClosurePaths(ctx context.Context, roots []nix.StorePath, outputs bool) ([]nix.StorePath, error) {
	s.early.start(ctx, s.spread-1) // for PathInfos
	var paths []nix.StorePath
	s.rounds.Add(1)
	err := s.first.ask(ctx, "ask for the closure", func(w *wire.Writer) {
		w.Uint64(cmdQueryClosure)
		w.Bool(outputs)
		w.Paths(roots)
	}, func(r *wire.Reader) error {
		paths = r.Paths(s.dir, wire.MaxPaths)
		return r.Err()
	})
	return paths, err
}

// infosPerSession is how many path infos fill about half of an SSH channel's window
// of 2 MiB: more of them in one session wait for further round trips.
const infosPerSession = 1000

// PathInfos returns what the far end knows of those of paths that are valid there.
func (s *Store) PathInfos(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error) {
	s.rounds.Add(1)
	parts := slices.Collect(slices.Chunk(paths, max(infosPerSession, (len(paths)+s.spread-1)/s.spread)))
	answers := make([][]*nix.PathInfo, len(parts))
	errs := make([]error, len(parts))
	var all sync.WaitGroup
	for i, part := range parts {
		all.Go(func() { answers[i], errs[i] = s.pathInfos(ctx, i, part) })
	}
	all.Wait()
	return slices.Concat(answers...), errors.Join(errs...)
}

// pathInfos asks in the session with that number, or in the first if the far end
// allows no more.
func (s *Store) pathInfos(ctx context.Context, number int, paths []nix.StorePath) (infos []*nix.PathInfo, err error) {
	c, err := s.session(ctx, number)
	if err != nil {
		c = s.first
	}
	err = c.ask(ctx, "ask for path infos", func(w *wire.Writer) {
		w.Uint64(cmdQueryPathInfos)
		w.Paths(paths)
	}, func(r *wire.Reader) error {
		var err error
		infos, err = s.readPathInfos(r, paths)
		return err
	})
	return infos, err
}

func (s *Store) readPathInfos(r *wire.Reader, asked []nix.StorePath) ([]*nix.PathInfo, error) {
	var infos []*nix.PathInfo
	var paths []nix.StorePath
	var budget nix.ClosureBudget
	for {
		path := r.OptionalPath(s.dir)
		if path.IsZero() {
			if err := r.Err(); err != nil {
				return nil, err
			}
			return infos, checkSubset("path infos", paths, asked)
		}
		if len(infos) == len(asked) {
			return nil, &wire.FormatError{Msg: "it sends more path infos than were asked for"}
		}
		info := s.readPathInfo(r, path)
		err := r.Err()
		if err == nil {
			err = budget.Add(info.MemorySize())
		}
		if err != nil {
			return nil, fmt.Errorf("path info of %s: %w", path, err)
		}
		infos, paths = append(infos, info), append(paths, path)
	}
}

// readPathInfo reads the fields of version 2.4 and later behind the path.
func (s *Store) readPathInfo(r *wire.Reader, path nix.StorePath) *nix.PathInfo {
	info := &nix.PathInfo{Path: path}
	info.Deriver = r.OptionalPath(s.dir)
	info.References = r.Paths(s.dir, wire.MaxReferences)
	info.SortReferences()
	r.Uint64() // download size: the same as the NAR size
	info.NARSize = r.Int64()
	hash, err := nix.ParseHash(r.String(wire.MaxField))
	if err == nil && hash.Algorithm() != nix.SHA256 {
		err = fmt.Errorf("NAR hash is not sha256")
	}
	info.CA = r.String(wire.MaxField)
	info.Signatures = r.Signatures()
	info.NARHash = hash
	if err == nil && info.NARSize == 0 {
		err = fmt.Errorf("NAR size is not known")
	}
	if err != nil {
		r.Fail(&wire.FormatError{Msg: err.Error()})
	}
	return info
}

// checkSubset returns an error unless all of got were asked for, each at most once.
func checkSubset(what string, got, asked []nix.StorePath) error {
	known := make(map[nix.StorePath]bool, len(asked))
	for _, p := range asked {
		known[p] = true
	}
	for _, p := range got {
		if !known[p] {
			return &wire.FormatError{Msg: fmt.Sprintf("it answers with %s that hold %s, which was not asked for or came before", what, p)}
		}
		known[p] = false
	}
	return nil
}

// Close ends all sessions, and with them the far end's temporary roots. It returns
// an error if a far program ended badly although every request was answered.
func (s *Store) Close() error {
	var ending sync.WaitGroup
	ending.Go(s.early.close)
	err := s.sessions.Close()
	ending.Wait()
	s.joined.Wait()
	return err
}

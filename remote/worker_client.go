package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// A Daemon is a store behind sessions of Nix's worker protocol: a local daemon's
// socket, or nix-daemon --stdio elsewhere. Its methods may be called concurrently;
// requests of one session are pipelined.
type Daemon struct {
	*sessions
	dialect *workerDialect
}

// OpenDaemon starts the first session on a stream from open, which is asked again
// for each further one. It does not wait for an answer.
func OpenDaemon(ctx context.Context, open func(ctx context.Context, further bool) (io.ReadWriteCloser, error), o Options) (*Daemon, error) {
	d := &Daemon{dialect: &workerDialect{introduced: make(chan struct{})}}
	all, err := openSessions(ctx, open, d.dialect, o)
	if err != nil {
		return nil, err
	}
	d.sessions = all
	d.lanes = d
	d.rounds.Add(1) // for the greeting, which the first request waits for
	return d, nil
}

// Describe names the program at the far end and its protocol, for people.
func (d *Daemon) Describe() string {
	text := d.sessions.Describe()
	select {
	case <-d.dialect.introduced:
		if d.dialect.nixVersion != "" {
			text += " of " + d.dialect.nixVersion
		}
	default:
	}
	return text
}

// ask sends one request in the first session and waits for its answer.
func (d *Daemon) ask(ctx context.Context, what string, op uint64, write func(*wire.Writer), read func(*wire.Reader) error) error {
	if err := d.Greet(ctx); err != nil {
		return err
	}
	return d.first.ask(ctx, what, func(w *wire.Writer) {
		w.Uint64(op)
		write(w)
	}, func(r *wire.Reader) error {
		if err := d.first.readMessages(r, nil); err != nil {
			return err
		}
		return read(r)
	})
}

// A request is the same for each of many paths.
type request struct {
	op    uint64
	paths []nix.StorePath
	rest  func(*wire.Writer, nix.StorePath) // writes what follows the path; nil: nothing
}

// each sends one request for every path, and does not wait in between. The calls'
// answers, and what became of them, go to the batch that it returns.
func (d *Daemon) each(ctx context.Context, what string, q request, read func(*wire.Reader, nix.StorePath) error) (*batch, error) {
	b := newBatch(len(q.paths))
	if err := d.Greet(ctx); err != nil {
		return b, err
	}
	for _, p := range q.paths {
		k := &call{
			what: what + " " + p.String(),
			read: func(r *wire.Reader) error {
				if err := d.first.readMessages(r, nil); err != nil {
					return err
				}
				return read(r, p)
			},
			done: b.done,
		}
		err := d.first.send(k, false, func(w *wire.Writer) error {
			w.Uint64(q.op)
			w.Path(p)
			if q.rest != nil {
				q.rest(w, p)
			}
			return nil
		})
		if err != nil {
			return b, err
		}
	}
	return b, nil
}

// all is each, and waits for all answers.
func (d *Daemon) all(ctx context.Context, what string, q request, read func(*wire.Reader, nix.StorePath) error) error {
	if len(q.paths) == 0 {
		return nil
	}
	d.rounds.Add(1)
	b, err := d.each(ctx, what, q, read)
	if err != nil {
		return err
	}
	if err := d.first.flush(); err != nil {
		return err
	}
	return b.wait(ctx)
}

// A batch waits for several calls.
type batch struct {
	decided chan struct{} // closed when all are

	mu   sync.Mutex
	left int
	err  error // the first
}

func newBatch(n int) *batch { return &batch{decided: make(chan struct{}), left: n} }

func (b *batch) done(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = err
	}
	if b.left--; b.left == 0 {
		close(b.decided)
	}
}

func (b *batch) wait(ctx context.Context) error {
	select {
	case <-b.decided:
		return b.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ValidPaths returns those of paths that are valid. With lock the daemon keeps all of
// them from garbage collection until Close; with substitute it first tries to fetch
// what is missing from its caches.
func (d *Daemon) ValidPaths(ctx context.Context, paths []nix.StorePath, lock, substitute bool) ([]nix.StorePath, error) {
	if lock {
		if err := d.Hold(ctx, paths); err != nil {
			return nil, err
		}
	}
	if err := d.Greet(ctx); err != nil {
		return nil, err
	}
	if substitute && d.first.version < workerSubstitute {
		if err := d.ensure(ctx, paths); err != nil {
			return nil, err
		}
	}
	var valid []nix.StorePath
	d.rounds.Add(1)
	err := d.ask(ctx, "ask which paths are valid", opQueryValidPaths, func(w *wire.Writer) {
		w.Paths(paths)
		if d.first.version >= workerSubstitute {
			w.Bool(substitute)
		}
	}, func(r *wire.Reader) error {
		valid = r.Paths(d.dir, len(paths))
		return checkSubset("valid paths", valid, paths)
	})
	if err != nil {
		return nil, err
	}
	return valid, nil
}

// ensure has an old daemon try to fetch paths. That it cannot is no error.
func (d *Daemon) ensure(ctx context.Context, paths []nix.StorePath) error {
	err := d.all(ctx, "substitute", request{op: opEnsurePath, paths: paths}, func(r *wire.Reader, _ nix.StorePath) error {
		return readAcknowledgement(r)
	})
	var far *FarError
	if errors.As(err, &far) && far.cause == nil {
		return nil
	}
	return err
}

// Substitutable returns those of paths that the daemon's caches have.
func (d *Daemon) Substitutable(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error) {
	words := make([]string, len(paths))
	for i, p := range paths {
		words[i] = p.String()
	}
	var found []nix.StorePath
	d.rounds.Add(1)
	err := d.ask(ctx, "ask what can be substituted", opQueryMissing, func(w *wire.Writer) {
		w.Strings(words)
	}, func(r *wire.Reader) error {
		r.Paths(d.dir, wire.MaxPaths) // to build
		found = r.Paths(d.dir, wire.MaxPaths)
		r.Paths(d.dir, wire.MaxPaths) // unknown
		r.Uint64()                    // to download
		r.Uint64()                    // of NARs
		return r.Err()
	})
	if err != nil {
		return nil, err
	}
	asked := make(map[nix.StorePath]bool, len(paths))
	for _, p := range paths {
		asked[p] = true
	}
	return slices.DeleteFunc(found, func(p nix.StorePath) bool { return !asked[p] }), nil
}

// Hold asks the daemon to keep paths from garbage collection until Close, and does
// not wait for it: an error of the session shows in the next request.
func (d *Daemon) Hold(ctx context.Context, paths []nix.StorePath) error {
	if len(paths) > 1 && d.dialect.offers(featureTempRoots) {
		return d.holdTogether(paths)
	}
	_, err := d.each(ctx, "lock", request{op: opAddTempRoot, paths: paths}, func(r *wire.Reader, _ nix.StorePath) error {
		return readAcknowledgement(r)
	})
	return err
}

// holdTogether is Hold in one request.
func (d *Daemon) holdTogether(paths []nix.StorePath) error {
	k := &call{
		what: fmt.Sprintf("lock %d paths", len(paths)),
		read: func(r *wire.Reader) error {
			if err := d.first.readMessages(r, nil); err != nil {
				return err
			}
			return readAcknowledgement(r)
		},
		done: func(error) {},
	}
	return d.first.send(k, false, func(w *wire.Writer) error {
		w.Uint64(opAddTempRoots)
		w.Paths(sortedPaths(paths))
		return nil
	})
}

// PathInfos returns what the daemon knows of those of paths that are valid there. A
// daemon without a question about many is asked about one behind the other.
func (d *Daemon) PathInfos(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error) {
	if len(paths) > 1 && d.dialect.offers(featurePathInfos) {
		return d.pathInfosTogether(ctx, paths)
	}
	infos := make([]*nix.PathInfo, 0, len(paths))
	var budget nix.ClosureBudget
	err := d.all(ctx, "ask for the path info of", request{op: opQueryPathInfo, paths: paths}, func(r *wire.Reader, p nix.StorePath) error {
		if !r.Bool() {
			return r.Err()
		}
		info := readWorkerInfo(r, d.dir, p)
		infos = append(infos, info)
		return cmp.Or(r.Err(), budget.Add(info.MemorySize()))
	})
	if err != nil {
		return nil, err
	}
	return infos, nil
}

// AllPaths returns all paths that are valid in the daemon's store.
func (d *Daemon) AllPaths(ctx context.Context) (paths []nix.StorePath, err error) {
	d.rounds.Add(1)
	err = d.ask(ctx, "ask for all valid paths", opQueryAllValidPaths, func(*wire.Writer) {}, func(r *wire.Reader) error {
		paths = r.Paths(d.dir, wire.MaxPaths)
		return r.Err()
	})
	return paths, err
}

// pathInfosTogether is PathInfos in one request.
func (d *Daemon) pathInfosTogether(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error) {
	var infos []*nix.PathInfo
	var budget nix.ClosureBudget
	paths = sortedPaths(slices.Clone(paths)) // an answer may come before the question is written
	d.rounds.Add(1)
	err := d.ask(ctx, "ask for path infos", opQueryPathInfos, func(w *wire.Writer) {
		w.Paths(paths)
	}, func(r *wire.Reader) error {
		var known []nix.StorePath
		for range r.Count(len(paths)) {
			p := r.Path(d.dir)
			info := readWorkerInfo(r, d.dir, p)
			infos, known = append(infos, info), append(known, p)
			if err := cmp.Or(r.Err(), budget.Add(info.MemorySize())); err != nil {
				return err
			}
		}
		return checkSubset("path infos", known, paths)
	})
	if err != nil {
		return nil, err
	}
	return infos, nil
}

// readWorkerInfo reads the fields of a path info behind the path.
func readWorkerInfo(r *wire.Reader, dir nix.StoreDir, p nix.StorePath) *nix.PathInfo {
	info := &nix.PathInfo{Path: p}
	info.Deriver = r.OptionalPath(dir)
	digest := strings.TrimPrefix(r.String(wire.MaxField), string(nix.SHA256)+":")
	hash, err := nix.ParseDigest(nix.SHA256, digest)
	info.NARHash = hash
	info.References = r.Paths(dir, wire.MaxReferences)
	info.SortReferences()
	info.Registered = fromUnix(r.Int64())
	info.NARSize = r.Int64()
	r.Bool() // ultimate: local trust is not for others
	info.Signatures = r.Signatures()
	info.CA = r.String(wire.MaxField)
	if err == nil && info.NARSize == 0 {
		err = fmt.Errorf("NAR size is not known")
	}
	if err != nil {
		r.Fail(&wire.FormatError{Msg: err.Error()})
	}
	return info
}

// ValidOutputs returns those outputs of derivations that are valid.
func (d *Daemon) ValidOutputs(ctx context.Context, derivations []nix.StorePath) ([]nix.StorePath, error) {
	var outputs []nix.StorePath
	err := d.all(ctx, "ask for the outputs of", request{op: opQueryDerivationOutputMap, paths: derivations}, func(r *wire.Reader, _ nix.StorePath) error {
		for range r.Count(serverMaxOutputs) {
			r.String(wire.MaxField)
			if out := r.OptionalPath(d.dir); !out.IsZero() {
				outputs = append(outputs, out)
			}
		}
		return r.Err()
	})
	if err != nil || len(outputs) == 0 {
		return nil, err
	}
	return d.ValidPaths(ctx, sortedPaths(outputs), false, false)
}

// Trust finds out whether the daemon takes paths from this user without a trusted
// key's signature. Daemons before Nix 2.15 do not tell: such a one is asked to repair
// nothing at all, which it refuses to users whom it does not trust, and then hangs up.
func (d *Daemon) Trust(ctx context.Context) (Trust, error) {
	if err := d.Greet(ctx); err != nil {
		return TrustUnknown, err
	}
	if d.first.version >= workerTrust {
		return d.awaitTrust(ctx)
	}
	d.rounds.Add(1)
	err := d.ask(ctx, "ask whether this user is trusted", opBuildPaths, func(w *wire.Writer) {
		w.Strings(nil)
		w.Uint64(buildModeRepair)
	}, readAcknowledgement)
	var far *FarError
	switch {
	case err == nil:
		return Trusted, nil
	case errors.As(err, &far) && strings.Contains(far.Text, "trusted-users"):
		return NotTrusted, nil
	case errors.As(err, &far) && far.cause == nil:
		return TrustUnknown, nil
	}
	return TrustUnknown, err
}

// AddSignatures adds those of infos to what the daemon knows of the same paths, which
// it does not check. Daemons before Nix 2.17 refuse it to users whom they do not trust.
func (d *Daemon) AddSignatures(ctx context.Context, infos []*nix.PathInfo) error {
	paths := make([]nix.StorePath, len(infos))
	byPath := make(map[nix.StorePath][]string, len(infos))
	for i, info := range infos {
		paths[i], byPath[info.Path] = info.Path, info.Signatures
	}
	return d.all(ctx, "sign", request{
		op:    opAddSignatures,
		paths: paths,
		rest:  func(w *wire.Writer, p nix.StorePath) { w.Strings(byPath[p]) },
	}, func(r *wire.Reader, _ nix.StorePath) error { return readAcknowledgement(r) })
}

func (d *Daemon) awaitTrust(ctx context.Context) (Trust, error) {
	select {
	case <-d.dialect.introduced:
		return d.dialect.trust, nil
	case <-d.first.ended:
		return TrustUnknown, d.first.err
	case <-ctx.Done():
		return TrustUnknown, context.Cause(ctx)
	}
}

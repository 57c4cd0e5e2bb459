package localstore

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
)

const (
	defaultBatchPaths = 1000
	defaultBatchBytes = 256 << 20
	defaultWorkers    = 4

	smallNAR     = 256 << 10 // bytes; such are read as a whole and unpacked by a worker
	unpackBuffer = 128 << 10 // for others
	maxLocks     = 4000      // held by an import
	lockShares   = 8         // see Import
)

// ImportOptions say how paths are taken in. The zero value accepts all that is
// whole.
type ImportOptions struct {
	// Check refuses paths before anything is written. Content addresses are
	// checked in any case.
	Check func(*nix.PathInfo) error
	// Workers is the number of small paths that are unpacked at once; 0 for
	// what was found best.
	Workers int
	// After so many paths, or bytes of NARs, those that are complete are
	// registered together; 0 for what was found best.
	BatchPaths int
	BatchBytes int64
}

// An Import takes paths into a store, where they become valid in groups. Its
// methods may be called concurrently, Close excepted.
//
// While an import is at work it holds the lock of every path that is unpacked and
// not yet registered. If the process dies, such paths are not valid: whoever adds them
// next replaces them, and the next import into the store, of whatever, clears away
// them and their locks.
//
// The process must be able to open the files that are locked. So the locks are bounded, by
// mostLocks, of which a group has one share and those who wait for something have the
// others: one what is blocked between two commits, three what a commit has beside its
// group, and two the paths that were unpacked since. A worker whose path finds no room
// there waits. The directories that are being unpacked have a bound of their own.
type Import struct {
	store      *Store
	check      func(*nix.PathInfo) error
	batchPaths int
	batchBytes int64
	mostLocks  int
	workers    chan struct{} // a slot for each path in the background

	sweeping   sync.Once      // before the first path
	committing sync.Mutex     // held while a group is registered
	background sync.WaitGroup // goroutines, for which Close waits

	mu         sync.Mutex
	changed    *sync.Cond
	entries    map[nix.StorePath]*entry   // taken up and not decided
	working    map[chan struct{}]struct{} // workers, each closes its channel at its end
	queue      []*entry                   // unpacked, in the order that it was finished
	freshPaths int                        // in the queue, that no commit has looked at
	freshBytes int64
	scheduled  bool                     // a commit in the background
	waiting    int                      // for locks that others hold
	known      map[nix.StorePath]int64  // rows of valid paths
	absent     map[nix.StorePath]bool   // paths that were not valid when Expect asked
	partials   map[string]partial       // by hash part; nil: none are kept
	vouched    func(*nix.PathInfo) bool // whose partial paths are kept; nil: all
	pending    int                      // bytes of memory of entries
	lockTimer  *time.Timer              // until the locks of the queue are given up; nil: none are held
	closed     bool
	atomic     int                    // paths that become valid together; 0: in groups
	settled    map[nix.StorePath]bool // of those, valid already
}

// An entry is a path on its way.
type entry struct {
	info    *nix.PathInfo
	dones   []func(error)
	outputs []nix.DerivationOutput
	inputs  []nix.StorePath // derivations that it needs and does not refer to
	sound   bool            // a derivation, or none, whose outputs follow from it
	lock    *fileLock       // nil before the path is unpacked, or if given up for others
	left    inode           // what was in the path's place when the lock was given up
	busy    bool            // another process has the lock
	synced  bool            // the files are on the disk
	memory  int             // bytes that count as pending
	lease   *lease          // of a large path while it is unpacked
	aside   string          // where the tree is meanwhile, if it has lost its lock; else empty
}

// NewImport begins to take paths in.
func (s *Store) NewImport(opts ImportOptions) *Import {
	im := &Import{
		store:      s,
		check:      opts.Check,
		batchPaths: opts.BatchPaths,
		batchBytes: opts.BatchBytes,
		mostLocks:  mostLocks(),
		entries:    make(map[nix.StorePath]*entry),
		working:    make(map[chan struct{}]struct{}),
		known:      make(map[nix.StorePath]int64),
		absent:     make(map[nix.StorePath]bool),
	}
	im.changed = sync.NewCond(&im.mu)
	if im.batchPaths <= 0 {
		im.batchPaths = defaultBatchPaths
	}
	im.batchPaths = min(im.batchPaths, im.lockShare())
	if im.batchBytes <= 0 {
		im.batchBytes = defaultBatchBytes
	}
	workers := opts.Workers
	if workers <= 0 {
		workers = defaultWorkers
	}
	im.workers = make(chan struct{}, workers)
	return im
}

// mostLocks is a quarter of the files that this process may open.
func mostLocks() int { return min(max(lockShares, openFiles()/4), maxLocks) }

// openDirs is how many directories one path may have open while it is unpacked: another
// quarter, for the workers and as many paths that are unpacked from their streams.
func openDirs() int { return max(1, openFiles()/4/(2*defaultWorkers)) }

// openFiles is how many files this process may open.
func openFiles() int {
	const plenty = 1 << 20
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return maxLocks / 10
	}
	return int(min(uint64(limit.Cur), plenty))
}

func (im *Import) lockShare() int { return im.mostLocks / lockShares }

// Expect says which paths are about to be added, and what they refer to. It is not
// needed, but makes one question of many: the paths are held, and it is found out
// which are valid.
func (im *Import) Expect(ctx context.Context, paths []nix.StorePath) error {
	if err := im.store.mayWrite(); err != nil {
		return err
	}
	if err := im.hold(ctx, paths); err != nil {
		return err
	}
	ids, err := im.store.pathIDs(ctx, paths)
	if err != nil {
		return err
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	for i, p := range paths {
		if ids[i] != 0 {
			im.known[p] = ids[i]
		} else {
			im.absent[p] = true
		}
	}
	return nil
}

// Add takes one path in: it reads info.NARSize bytes from r, unpacks and checks
// them, and queues the path for registration. done is called exactly once, then or
// later, on any goroutine: with nil when the path is valid, also if it was before,
// else with the reason why it is not taken. The error that Add returns means that
// the stream broke; done gets it, too. ctx holds until done is called.
//
// A path may come before its references. Those must be valid, or have been added,
// when the path is flushed.
func (im *Import) Add(ctx context.Context, info *nix.PathInfo, r io.Reader, done func(error)) error {
	in := &input{r: r, left: info.NARSize}
	if err := im.admit(ctx, info); err != nil {
		return in.refuse(ctx, err, done)
	}
	e, err := im.begin(info, done)
	if err != nil {
		return in.refuse(ctx, err, done)
	}
	if e == nil {
		return in.drain(ctx) // done has joined another Add of the path
	}
	valid, err := im.isValid(ctx, info.Path)
	if err != nil || valid {
		return in.refuse(ctx, err, func(err error) { im.decide(e, err) })
	}
	if info.NARSize > smallNAR {
		return im.addLarge(ctx, e, in)
	}
	return im.addSmall(ctx, e, in)
}

// admit makes the checks that need no contents, and takes the temporary root.
func (im *Import) admit(ctx context.Context, info *nix.PathInfo) error {
	if err := im.store.mayWrite(); err != nil {
		return err
	}
	if err := im.store.checkInfo(info); err != nil {
		return err
	}
	if im.check != nil {
		if err := im.check(info); err != nil {
			return err
		}
	}
	return im.hold(ctx, []nix.StorePath{info.Path})
}

// hold takes temporary roots, and before the first of them clears away what others have
// left.
func (im *Import) hold(ctx context.Context, paths []nix.StorePath) error {
	im.sweeping.Do(func() {
		im.store.sweepDead(ctx)
		im.store.prunePartials()
	})
	if err := im.store.Hold(ctx, paths); err != nil {
		return nix.CheckNoSpace(err)
	}
	if err := im.store.keepTempRoots(); err != nil {
		im.store.log.Debug("a collector may delete the temporary roots if this process dies", "error", err)
	}
	return nil
}

// checkInfo makes the checks that every entrance to the store has in common.
func (s *Store) checkInfo(info *nix.PathInfo) error {
	if err := s.checkDir(info.Path); err != nil {
		return err
	}
	return info.Check()
}

// begin returns nil if the path is on its way already.
func (im *Import) begin(info *nix.PathInfo, done func(error)) (*entry, error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	e := im.entries[info.Path]
	if e != nil {
		if err := im.charge(e, doneMemory); err != nil {
			return nil, err
		}
		e.dones = append(e.dones, done)
		return nil, nil
	}
	e = &entry{info: info, dones: []func(error){done}}
	if err := im.charge(e, info.MemorySize()); err != nil {
		return nil, err
	}
	im.entries[info.Path] = e
	return e, nil
}

// isValid asks the database unless Expect has.
func (im *Import) isValid(ctx context.Context, p nix.StorePath) (bool, error) {
	im.mu.Lock()
	_, known := im.known[p]
	absent := im.absent[p]
	im.mu.Unlock()
	if known || absent {
		return known, nil
	}
	ids, err := im.store.pathIDs(ctx, []nix.StorePath{p})
	return err == nil && ids[0] != 0, err
}

// addSmall reads a NAR into memory, so that the next can be read while this one is
// unpacked.
func (im *Import) addSmall(ctx context.Context, e *entry, in *input) error {
	content := make([]byte, in.left)
	if _, err := io.ReadFull(in, content); err != nil {
		im.decide(e, err)
		return err
	}
	select {
	case im.workers <- struct{}{}:
	case <-ctx.Done():
		im.decide(e, context.Cause(ctx))
		return nil
	}
	done := make(chan struct{})
	im.mu.Lock()
	im.working[done] = struct{}{}
	im.mu.Unlock()
	im.background.Go(func() {
		err := im.place(ctx, e, bytes.NewReader(content), func() [sha256.Size]byte { return sha256.Sum256(content) })
		im.placed(ctx, e, err) // which may wait, and must then keep others from unpacking
		<-im.workers
		im.mu.Lock()
		delete(im.working, done)
		im.mu.Unlock()
		close(done)
	})
	return nil
}

// addLarge unpacks a NAR from the stream.
func (im *Import) addLarge(ctx context.Context, e *entry, in *input) error {
	space, err := im.store.reserve(in)
	if err != nil {
		im.decide(e, err) // before the client sends all of it
		return in.drain(ctx)
	}
	defer space.release()
	hasher := nar.NewHasher(sha256.New())
	e.lease = &lease{im: im, e: e, in: space}
	contents := bufio.NewReaderSize(io.TeeReader(e.lease, hasher), unpackBuffer)
	contents.Peek(leaseHead) // a sender who says nothing gets no lock; its error comes again
	stop := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { e.lease.watch(stop) })
	err = im.place(ctx, e, contents, func() [sha256.Size]byte { return [sha256.Size]byte(hasher.Sum()) })
	close(stop)
	watching.Wait()
	hasher.Sum() // in case that place did not come to it
	broken := in.drain(ctx)
	if broken != nil {
		err = broken
	}
	im.placed(ctx, e, err)
	return broken
}

// errAlreadyValid says that a path became valid while we waited for its lock.
var errAlreadyValid = errors.New("path is valid already")

// placed goes on with a path that was unpacked, or failed with err.
func (im *Import) placed(ctx context.Context, e *entry, err error) {
	switch {
	case errors.Is(err, errAlreadyValid):
		im.decide(e, nil)
	case err != nil:
		im.decide(e, err)
	default:
		im.enqueue(ctx, e)
	}
}

// decide tells everybody who added the path what became of it.
func (im *Import) decide(e *entry, err error) {
	im.mu.Lock()
	delete(im.entries, e.info.Path)
	delete(im.absent, e.info.Path)
	im.pending -= e.memory
	if im.atomic > 0 && err == nil {
		im.settled[e.info.Path] = true
	}
	dones := e.dones
	im.mu.Unlock()
	for _, done := range dones {
		done(err)
	}
}

// An input is one NAR on a stream of many.
type input struct {
	r    io.Reader
	left int64 // bytes of the NAR
	err  error // of the stream
}

func (in *input) Read(p []byte) (int, error) {
	if in.err != nil {
		return 0, in.err
	}
	if in.left <= 0 {
		return 0, io.EOF
	}
	n, err := in.r.Read(p[:min(int64(len(p)), in.left)])
	in.left -= int64(n)
	if in.left == 0 {
		return n, nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		in.err = fmt.Errorf("read NAR: %w", err)
	}
	return n, in.err
}

// drain reads what is left.
func (in *input) drain(ctx context.Context) error {
	if in.err == nil && in.left > 0 && ctx.Err() != nil {
		in.err = context.Cause(ctx)
	}
	if in.err == nil {
		_, in.err = io.Copy(io.Discard, in)
	}
	return in.err
}

// refuse drains the stream and gives err, or the stream's error, to done.
func (in *input) refuse(ctx context.Context, err error, done func(error)) error {
	drainErr := in.drain(ctx)
	if drainErr != nil {
		err = drainErr
	}
	done(err)
	return drainErr
}

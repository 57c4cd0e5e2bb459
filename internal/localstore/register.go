package localstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"zombiezen.com/go/sqlite"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// enqueue adds an unpacked path to the queue, and has the queue registered when it
// is long or we wait for others, who may wait for our locks. It waits while the
// queue is too long.
func (im *Import) enqueue(ctx context.Context, e *entry) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.queue = append(im.queue, e)
	im.limitLocks(ctx)
	im.freshPaths++
	im.freshBytes += e.info.NARSize
	if im.waiting > 0 || im.full(1) {
		im.schedule(ctx)
	}
	for im.full(2) && im.scheduled {
		im.changed.Wait()
	}
}

// full reports whether n batches are in the queue.
func (im *Import) full(n int) bool {
	return im.freshPaths >= n*im.batchPaths || im.freshBytes >= int64(n)*im.batchBytes
}

// schedule starts a commit in the background unless one is about to start. The
// caller holds im.mu.
func (im *Import) schedule(ctx context.Context) {
	if im.scheduled {
		return
	}
	im.scheduled = true
	im.background.Go(func() { im.commit(ctx, false) })
}

// addWaiting says that one more of our goroutines waits for another process's lock,
// or one less.
func (im *Import) addWaiting(ctx context.Context, n int) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.waiting += n
	if n > 0 && len(im.queue) > 0 {
		im.schedule(ctx)
	}
}

// Commit registers those of the paths whose Add has returned whose references are
// valid or among them. The others stay in the queue.
func (im *Import) Commit(ctx context.Context) error {
	im.awaitWorkers()
	im.commit(ctx, false)
	return context.Cause(ctx)
}

// Flush returns when done was called for every path whose Add has returned. A path
// whose references are still missing is refused with an error that wraps
// nix.ErrNotValid.
func (im *Import) Flush(ctx context.Context) error {
	im.awaitWorkers()
	im.commit(ctx, true)
	return context.Cause(ctx)
}

// Close flushes, unless the import is atomic, and ends the import. No other method may run then, or be called
// later.
func (im *Import) Close() error {
	im.endLocks()
	im.background.Wait()
	if im.atomic > 0 {
		im.giveUp()
		return nil
	}
	return im.Flush(context.Background())
}

// awaitWorkers waits for the workers that have begun.
func (im *Import) awaitWorkers() {
	im.mu.Lock()
	working := slices.Collect(maps.Keys(im.working))
	im.mu.Unlock()
	for _, done := range working {
		<-done
	}
}

// commit registers what it can of the queue. With final, it decides the rest, too.
func (im *Import) commit(ctx context.Context, final bool) {
	im.committing.Lock()
	defer im.committing.Unlock()
	im.mu.Lock()
	batch := im.queue
	im.queue, im.freshPaths, im.freshBytes, im.scheduled = nil, 0, 0, false
	im.changed.Broadcast()
	atomic := im.atomic > 0
	im.mu.Unlock()
	switch {
	case atomic && final:
		im.commitAtomic(ctx, batch)
		return
	case atomic:
		im.putBack(batch)
		return
	}
	for len(batch) > 0 {
		blocked, err := im.register(ctx, batch)
		if err == nil && !final {
			im.putBack(blocked)
			return
		}
		again := false
		if err == nil {
			again, err = im.awaitLock(ctx, blocked)
		}
		if !again {
			im.refuse(blocked, err)
			return
		}
		batch = blocked
	}
}

// register makes those paths valid whose references are valid or become so with
// them, and whose locks are ours or free. It returns the others, or those that met
// an error.
func (im *Import) register(ctx context.Context, batch []*entry) (blocked []*entry, err error) {
	for retried := false; ; {
		ready, blocked, err := im.resolve(ctx, batch)
		if err != nil {
			return batch, err
		}
		if len(ready) == 0 {
			return blocked, nil
		}
		ready, rest := im.share(ready)
		im.yieldBeyond(3*im.lockShare(), slices.Concat(rest, blocked))
		left, all := im.regainAll(ctx, ready)
		if batch = slices.Concat(left, rest, blocked); !all {
			continue // without these, others may have to wait
		}
		if unsound, err := im.checkDerivations(ctx, ready); unsound != nil {
			im.reject(unsound, err)
			batch = slices.DeleteFunc(batch, func(e *entry) bool { return e == unsound })
			continue
		}
		err = im.registerReady(ctx, ready)
		switch {
		case err == nil:
			batch = batch[len(ready):]
		case !retried && sqlite.ErrCode(err) == sqlite.ResultConstraintForeignKey:
			// A reference that we knew to be valid is so no more.
			im.forget()
			retried = true
		default:
			return batch, err
		}
	}
}

func (im *Import) forget() {
	im.mu.Lock()
	defer im.mu.Unlock()
	clear(im.known)
}

// share cuts off as many paths as may be locked at once. Their references are
// valid, or come before them.
func (im *Import) share(ready []*entry) (first, rest []*entry) {
	n := min(len(ready), im.lockShare())
	return ready[:n:n], ready[n:]
}

// registerReady makes paths valid whose locks we have, references first.
func (im *Import) registerReady(ctx context.Context, ready []*entry) error {
	if err := im.sync(ready); err != nil {
		return err
	}
	ids, err := im.store.insert(ctx, ready, im.rowsOf(ready))
	if err != nil {
		return err
	}
	im.registered(ready, ids)
	return nil
}

// resolve returns the paths that can be registered now, references first, and
// the others.
func (im *Import) resolve(ctx context.Context, batch []*entry) (ready, blocked []*entry, err error) {
	byPath := make(map[nix.StorePath]*entry, len(batch))
	for _, e := range batch {
		byPath[e.info.Path] = e
	}
	if err := im.lookUp(ctx, batch, byPath); err != nil {
		return nil, nil, err
	}
	waits := make(map[*entry]int, len(batch))
	referrers := make(map[*entry][]*entry)
	for _, e := range batch {
		if e.busy {
			waits[e]++
		}
		for ref := range e.needs() {
			if before := byPath[ref]; before != nil && before != e {
				referrers[before] = append(referrers[before], e)
				waits[e]++
			} else if before == nil && !im.isKnown(ref) {
				waits[e]++ // for ever
			}
		}
		if waits[e] == 0 {
			ready = append(ready, e)
		}
	}
	for i := 0; i < len(ready); i++ {
		for _, e := range referrers[ready[i]] {
			if waits[e]--; waits[e] == 0 {
				ready = append(ready, e)
			}
		}
	}
	for _, e := range batch {
		if waits[e] > 0 {
			blocked = append(blocked, e)
		}
	}
	return ready, blocked, nil
}

// lookUp asks the database for references that are neither in the batch nor known.
func (im *Import) lookUp(ctx context.Context, batch []*entry, byPath map[nix.StorePath]*entry) error {
	var unknown []nix.StorePath
	asked := make(map[nix.StorePath]bool)
	for _, e := range batch {
		for ref := range e.needs() {
			if byPath[ref] == nil && !asked[ref] && !im.isKnown(ref) {
				asked[ref] = true
				unknown = append(unknown, ref)
			}
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	ids, err := im.store.pathIDs(ctx, unknown)
	if err != nil {
		return err
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	for i, ref := range unknown {
		if ids[i] != 0 {
			im.known[ref] = ids[i]
		}
	}
	return nil
}

func (im *Import) isKnown(p nix.StorePath) bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.known[p] != 0
}

// rowsOf returns the rows of the valid paths that those of a batch refer to.
func (im *Import) rowsOf(batch []*entry) map[nix.StorePath]int64 {
	im.mu.Lock()
	defer im.mu.Unlock()
	rows := make(map[nix.StorePath]int64)
	for _, e := range batch {
		for _, ref := range e.info.References {
			if id := im.known[ref]; id != 0 {
				rows[ref] = id
			}
		}
	}
	return rows
}

// sync writes the files to the disk.
func (im *Import) sync(batch []*entry) error {
	synced := true
	for _, e := range batch {
		synced = synced && e.synced
	}
	if synced || im.store.config.NoSync {
		return nil
	}
	if err := im.store.syncContents(); err != nil {
		return fmt.Errorf("write %s to the disk: %w", im.store.config.RealDir, err)
	}
	for _, e := range batch {
		e.synced = true
	}
	return nil
}

// registered releases paths that have become valid.
func (im *Import) registered(batch []*entry, ids []int64) {
	im.mu.Lock()
	for i, e := range batch {
		im.known[e.info.Path] = ids[i]
	}
	im.mu.Unlock()
	for _, e := range batch {
		im.unlock(e)
		im.decide(e, nil)
	}
}

// unlock gives a path's lock up. That it cannot be deleted is no reason to refuse a
// path that is valid.
func (im *Import) unlock(e *entry) {
	if err := e.lock.release(); err != nil {
		im.store.log.Warn("lock is left behind", "path", e.info.Path, "error", err)
	}
	e.lock = nil
}

// refuse decides paths that cannot be registered, because of their references or
// of err.
func (im *Import) refuse(batch []*entry, err error) {
	// To take a lock back needs an open file, which those that we have set free.
	slices.SortStableFunc(batch, func(a, b *entry) int { return cmp.Compare(a.lockOrder(), b.lockOrder()) })
	for _, e := range batch {
		errs := []error{err}
		if err == nil {
			for _, ref := range im.unknown(e) {
				errs = append(errs, fmt.Errorf("it needs %s: %w", ref, nix.ErrNotValid))
			}
		}
		im.reject(e, errors.Join(errs...))
	}
}

// reject decides a path that is not taken, and deletes what is unpacked of it.
func (im *Import) reject(e *entry, err error) {
	// What another process has taken over is not ours to delete.
	if held, _ := im.regain(context.Background(), e); held {
		err = errors.Join(err, im.drop(e))
	}
	im.decide(e, err)
}

func (e *entry) lockOrder() int {
	if e.lock != nil {
		return 0
	}
	return 1
}

// needs yields what must be valid before a path: its references, and the derivations
// from which its outputs follow.
func (e *entry) needs() iter.Seq[nix.StorePath] {
	return func(yield func(nix.StorePath) bool) {
		for _, list := range [][]nix.StorePath{e.info.References, e.inputs} {
			for _, p := range list {
				if !yield(p) {
					return
				}
			}
		}
	}
}

// unknown returns what a path needs that is not valid.
func (im *Import) unknown(e *entry) []nix.StorePath {
	var refs []nix.StorePath
	for ref := range e.needs() {
		if ref != e.info.Path && !im.isKnown(ref) {
			refs = append(refs, ref)
		}
	}
	return refs
}

// An inode identifies what is at a path, and that it has not been touched.
type inode struct {
	number  uint64
	changed unix.Timespec
}

func (s *Store) inode(p nix.StorePath) (inode, error) {
	var st unix.Stat_t
	if err := unix.Lstat(s.RealPath(p), &st); err != nil {
		return inode{}, err
	}
	return inode{st.Ino, changeTime(&st)}, nil
}

// putBack returns blocked paths to the queue. Their locks are given up if we wait
// for others, who may wait for them, or if they are too many.
func (im *Import) putBack(blocked []*entry) {
	im.mu.Lock()
	defer im.mu.Unlock()
	most := im.lockShare()
	if im.waiting > 0 {
		most = 0
	}
	im.yieldBeyond(most, blocked)
	for _, e := range blocked {
		e.busy = false
	}
	im.queue = append(blocked, im.queue...)
}

// yieldBeyond gives up the locks of a batch but for the first so many.
func (im *Import) yieldBeyond(most int, batch []*entry) {
	for _, e := range batch {
		if e.lock == nil {
			continue
		}
		if most--; most < 0 {
			im.yield(e)
		}
	}
}

// yield gives the lock of an unpacked path up for a while. Whoever takes it will
// replace the contents, and begins by changing the topmost inode.
func (im *Import) yield(e *entry) {
	var err error
	if e.left, err = im.store.inode(e.info.Path); err != nil {
		im.store.log.Debug("contents vanished", "path", e.info.Path, "error", err)
	}
	im.unlock(e)
}

// regainAll takes back the locks that were given up. It reports whether it has all,
// and returns the paths that are not decided thereby; those that others have locked
// are marked busy.
func (im *Import) regainAll(ctx context.Context, ready []*entry) (left []*entry, all bool) {
	all = true
	for _, e := range ready {
		held, err := im.regain(ctx, e)
		all = all && held
		switch {
		case errors.Is(err, errAlreadyValid):
			im.decide(e, nil)
		case err != nil:
			im.decide(e, err)
		default:
			e.busy = !held
			left = append(left, e)
		}
	}
	return left, all
}

// regain takes back a lock that was given up, if it is free and the contents are
// still ours.
func (im *Import) regain(ctx context.Context, e *entry) (bool, error) {
	if e.lock != nil {
		return true, nil
	}
	lock, err := tryFileLock(im.store.RealPath(e.info.Path) + ".lock")
	if lock == nil {
		im.abandon(err)
		return false, err
	}
	e.lock = lock
	if err := im.recheck(ctx, e); err != nil {
		im.abandon(err)
		im.unlock(e)
		return false, err
	}
	return true, nil
}

// abandon has a later import look for what is left of a path, if err is why its lock is
// not ours again.
func (im *Import) abandon(err error) {
	if err != nil && !errors.Is(err, errAlreadyValid) {
		im.store.leftovers.Store(true)
	}
}

// recheck looks what became of a path while its lock was not ours.
func (im *Import) recheck(ctx context.Context, e *entry) error {
	ids, err := im.store.pathIDs(ctx, []nix.StorePath{e.info.Path})
	if err != nil {
		return err
	}
	if ids[0] != 0 {
		return errAlreadyValid
	}
	if now, err := im.store.inode(e.info.Path); err == nil && now == e.left {
		return nil
	}
	// Another import has replaced the contents and then given the lock up, too, or
	// it has died.
	if err := im.store.checkPlaced(ctx, e.info); err != nil {
		return fmt.Errorf("another process replaced the contents and did not finish: %w", err)
	}
	return nil
}

// awaitLock waits until the lock of a path is free that was given up, and that
// nothing else stands in the way of. No other lock is held meanwhile. It returns
// false if there is no such path.
func (im *Import) awaitLock(ctx context.Context, batch []*entry) (bool, error) {
	for _, e := range batch {
		if !e.busy || len(im.unknown(e)) > 0 {
			continue
		}
		im.yieldBeyond(0, batch)
		lock, err := waitFileLock(ctx, im.store.RealPath(e.info.Path)+".lock")
		if err != nil {
			return false, err
		}
		e.busy = false
		return true, lock.release()
	}
	return false, nil
}

// insert makes paths valid, in one transaction. rows are those of their references
// that are valid already; the others come earlier in the batch.
func (s *Store) insert(ctx context.Context, batch []*entry, rows map[nix.StorePath]int64) ([]int64, error) {
	ids := make([]int64, len(batch))
	err := s.db.write(ctx, func(conn *sqlite.Conn) error {
		for i, e := range batch {
			id, err := insertPath(conn, e.info)
			if err != nil {
				return err
			}
			if ids[i] = id; id == 0 {
				// Somebody has registered it without its lock.
				if ids[i], err = pathID(conn, e.info.Path); err != nil {
					return err
				}
			}
			rows[e.info.Path] = ids[i]
			if id == 0 {
				continue
			}
			for _, ref := range e.info.References {
				if err := insertRow(conn, "INSERT INTO Refs (referrer, reference) VALUES (?, ?)", id, rows[ref]); err != nil {
					return err
				}
			}
			if err := insertOutputs(conn, id, e.outputs); err != nil {
				return err
			}
		}
		return nil
	})
	return ids, err
}

// insertPath returns 0 if the path is valid already.
func insertPath(conn *sqlite.Conn, info *nix.PathInfo) (int64, error) {
	registered := info.Registered
	if seconds := registered.Unix(); registered.IsZero() || seconds <= 0 || seconds >= maxSeconds {
		registered = time.Now()
	}
	err := insertRow(conn, `INSERT INTO ValidPaths (path, hash, registrationTime, deriver, narSize, ultimate, sigs, ca)
		VALUES (?, ?, ?, ?, ?, NULL, ?, ?) ON CONFLICT (path) DO NOTHING`,
		info.Path.String(), "sha256:"+info.NARHash.Hex(), registered.Unix(), info.Deriver.String(), info.NARSize,
		strings.Join(nix.MergeSignatures(info.Signatures, nil), " "), info.CA)
	if err != nil || conn.Changes() == 0 {
		return 0, err
	}
	return conn.LastInsertRowID(), nil
}

// insertOutputs records the outputs of a derivation that are known.
func insertOutputs(conn *sqlite.Conn, id int64, outputs []nix.DerivationOutput) error {
	for _, out := range outputs {
		if out.Path.IsZero() {
			continue
		}
		err := insertRow(conn, "INSERT OR REPLACE INTO DerivationOutputs (drv, id, path) VALUES (?, ?, ?)", id, out.Name, out.Path.String())
		if err != nil {
			return err
		}
	}
	return nil
}

// insertRow runs a statement with integers and texts; an empty text is NULL.
func insertRow(conn *sqlite.Conn, query string, values ...any) error {
	stmt, err := conn.Prepare(query)
	if err != nil {
		return err
	}
	for i, v := range values {
		switch v := v.(type) {
		case int64:
			stmt.BindInt64(i+1, v)
		case string:
			if v == "" {
				stmt.BindNull(i + 1)
			} else {
				stmt.BindText(i+1, v)
			}
		}
	}
	_, err = stmt.Step()
	return errors.Join(err, stmt.Reset())
}

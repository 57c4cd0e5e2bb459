package localstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
	"zombiezen.com/go/sqlite"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// Atomic makes the paths of the import become valid together: when so many have been
// added, by Flush, in one transaction. A Flush before that refuses all of them, and Close
// deletes what was not flushed. It is called before the first Add. The error is that of
// more paths than can be locked at once.
func (im *Import) Atomic(paths int) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	if most := limit.Cur / 2; uint64(paths) > most {
		return fmt.Errorf("%d paths cannot become valid at once: each is a file to be locked, and this process may open %d (ulimit -n)", paths, limit.Cur)
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.atomic, im.settled = paths, make(map[nix.StorePath]bool)
	im.mostLocks = max(im.mostLocks, lockShares*paths) // one share is held
	return nil
}

// commitAtomic registers all that is in the batch, or refuses all.
func (im *Import) commitAtomic(ctx context.Context, batch []*entry) {
	for retried := false; len(batch) > 0; {
		err := im.complete(len(batch))
		if err == nil {
			batch, err = im.lockAll(ctx, batch)
		}
		if err == nil {
			_, err = im.checkDerivations(ctx, batch)
		}
		if err == nil {
			err = im.registerReady(ctx, batch)
		}
		switch {
		case errors.Is(err, errChanged):
			continue
		case err == nil:
			return
		case !retried && sqlite.ErrCode(err) == sqlite.ResultConstraintForeignKey:
			im.forget() // a reference that we knew to be valid is so no more
			retried = true
		default:
			im.refuse(batch, err)
			return
		}
	}
}

// complete returns an error if paths are missing beside the n that are to be registered.
func (im *Import) complete(n int) error {
	im.mu.Lock()
	defer im.mu.Unlock()
	if got := n + len(im.settled); got < im.atomic {
		return fmt.Errorf("%d of %d paths are there, and they become valid together or not at all", got, im.atomic)
	}
	return nil
}

// errChanged says that the batch must be looked at again.
var errChanged = errors.New("the batch has changed")

// lockAll returns the batch, references first, with all its locks in our hands. With
// errChanged it returns what is left of it.
func (im *Import) lockAll(ctx context.Context, batch []*entry) ([]*entry, error) {
	for _, e := range batch {
		e.busy = false
	}
	ready, blocked, err := im.resolve(ctx, batch)
	if err != nil {
		return batch, err
	}
	if len(blocked) > 0 {
		return batch, im.missingReference(batch)
	}
	left, all := im.regainAll(ctx, ready)
	switch {
	case !all:
		return left, cmp.Or(im.awaitBusy(ctx, left), errChanged)
	case len(left) < len(ready):
		return left, errChanged
	}
	return left, nil
}

// missingReference names a reference that is neither valid nor in the batch.
func (im *Import) missingReference(batch []*entry) error {
	for _, e := range batch {
		for _, ref := range im.unknown(e) {
			if !slices.ContainsFunc(batch, func(other *entry) bool { return other.info.Path == ref }) {
				return fmt.Errorf("%s refers to %s: %w", e.info.Path, ref, nix.ErrNotValid)
			}
		}
	}
	return errors.New("the references of the paths are a circle")
}

// awaitBusy gives up all locks and waits until one that another process has is free.
func (im *Import) awaitBusy(ctx context.Context, batch []*entry) error {
	busy := slices.IndexFunc(batch, func(e *entry) bool { return e.busy })
	if busy < 0 {
		return nil
	}
	im.yieldBeyond(0, batch)
	lock, err := waitFileLock(ctx, im.store.RealPath(batch[busy].info.Path)+".lock")
	if err != nil {
		return err
	}
	return lock.release()
}

// giveUp deletes what was not flushed.
func (im *Import) giveUp() {
	im.awaitWorkers()
	im.committing.Lock()
	defer im.committing.Unlock()
	im.mu.Lock()
	batch := im.queue
	im.queue = nil
	im.mu.Unlock()
	im.refuse(batch, errors.New("the import ended before all paths were there"))
}

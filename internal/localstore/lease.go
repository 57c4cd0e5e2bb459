package localstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
)

// An import keeps the lock of a path only while the path makes progress, so that a sender
// who stalls keeps nobody else from the path.
const (
	leaseTerm  = 5 * time.Second
	leaseBytes = 512 << 10 // of a NAR that must come in a term
	leaseTerms = 24        // after which the lock is given up in any case

	leaseHead = 4096 // bytes of a NAR that are there before the lock is taken
)

// A lease reads a NAR that is unpacked under its path's lock. If too little comes, the tree
// is moved out of the path's place, the lock is given up, and unpacking goes on in the
// tree. It returns home when it is complete.
type lease struct {
	im *Import
	e  *entry
	in io.Reader

	mu      sync.Mutex
	active  bool  // the tree is at the path's place, and the lock is ours
	reading bool  // in waits: nobody changes the tree's name
	due     bool  // the tree is to be moved before the next Read
	recent  int64 // bytes of this term
	terms   int
}

// Read implements io.Reader.
func (l *lease) Read(p []byte) (int, error) {
	l.mu.Lock()
	if l.due {
		l.moveAside()
	}
	l.reading = true
	l.mu.Unlock()
	n, err := l.in.Read(p)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reading = false
	l.recent += int64(n)
	return n, err
}

// watch ends a term from time to time until stop is closed.
func (l *lease) watch(stop <-chan struct{}) {
	ticker := time.NewTicker(leaseTerm)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			l.endTerm()
		case <-stop:
			return
		}
	}
}

func (l *lease) endTerm() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.active {
		return
	}
	l.terms++
	slow := l.recent < leaseBytes || l.terms >= leaseTerms
	l.recent = 0
	switch {
	case slow && l.reading:
		l.moveAside()
	case slow:
		l.due = true
	}
}

// begin says that the tree is about to be made at the path's place, of which the lock is
// ours.
func (l *lease) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.active, l.recent = true, leaseBytes
}

// end says that the tree is not to be moved any more.
func (l *lease) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.active, l.due = false, false
}

// moveAside gives up the lock. The caller holds l.mu. Where it fails the lock stays.
func (l *lease) moveAside() {
	if !l.active {
		return
	}
	s, base := l.im.store, l.e.info.Path.Base()
	aside := asideName(l.e.info.Path, fmt.Sprint(os.Getpid()))
	var st unix.Stat_t
	err := unix.Fstatat(int(s.dir.Fd()), aside, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		err = fs.ErrExist // of another import
	} else if errors.Is(err, unix.ENOENT) {
		err = unix.Renameat(int(s.dir.Fd()), base, int(s.dir.Fd()), aside)
	}
	l.due = false
	if err != nil {
		s.log.Debug("lock is kept although nothing comes", "path", l.e.info.Path, "error", err)
		return
	}
	l.active = false
	l.e.aside = aside
	l.im.unlock(l.e)
	s.log.Debug("lock is given up for others, as too little comes", "path", l.e.info.Path)
}

// home brings the tree back to the path's place, under its lock. errAlreadyValid says that
// another process was faster.
func (l *lease) home(ctx context.Context) error {
	l.end()
	e, s := l.e, l.im.store
	if e.aside == "" {
		return nil
	}
	if err := l.im.lock(ctx, e); err != nil {
		return err
	}
	if err := nar.RemoveAllAt(s.dir, e.info.Path.Base()); err != nil {
		return err
	}
	if err := unix.Renameat(int(s.dir.Fd()), e.aside, int(s.dir.Fd()), e.info.Path.Base()); err != nil {
		return &fs.PathError{Op: "rename", Path: filepath.Join(s.config.RealDir, e.aside), Err: err}
	}
	e.aside = ""
	return nil
}

// asideName is where a tree is that has lost its lock. It begins with the path's hash part,
// so that a garbage collector leaves it alone while the path is a temporary root, and ends
// with the number of the process, so that it is found when that has died.
func asideName(p nix.StorePath, pid string) string {
	return p.HashPart() + "-unfinished-" + pid
}

// sweepAside deletes the tree that a process has left which died when it had no lock.
// tempRoots is the name of the file of its temporary roots, which begins with its number.
func (s *Store) sweepAside(p nix.StorePath, tempRoots string) error {
	name := filepath.Base(tempRoots)
	pid := name[:len(name)-len(strings.TrimLeft(name, "0123456789"))]
	aside := asideName(p, pid)
	if _, err := os.Lstat(filepath.Join(s.config.RealDir, aside)); err != nil {
		return nil
	}
	return nar.RemoveAllAt(s.dir, aside)
}

// tree is where a path is being unpacked.
func (im *Import) tree(e *entry) string {
	if e.aside != "" {
		return filepath.Join(im.store.config.RealDir, e.aside)
	}
	return im.store.RealPath(e.info.Path)
}

// limitLocks has the locks of the queue given up after two terms: its paths wait for
// others, or for a sender who says nothing. The caller holds im.mu.
func (im *Import) limitLocks(ctx context.Context) {
	if im.lockTimer == nil && !im.closed {
		im.lockTimer = time.AfterFunc(2*leaseTerm, func() { im.giveUpLocks(ctx) })
	}
}

// endLocks stops that. The caller waits for im.background afterwards.
func (im *Import) endLocks() {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.closed = true
	if im.lockTimer != nil {
		im.lockTimer.Stop()
	}
}

// giveUpLocks registers what it can of the queue, and gives up the locks of the rest.
func (im *Import) giveUpLocks(ctx context.Context) {
	im.mu.Lock()
	im.lockTimer = nil
	if im.closed {
		im.mu.Unlock()
		return
	}
	im.background.Add(1)
	im.mu.Unlock()
	defer im.background.Done()
	im.commit(ctx, false)
	im.committing.Lock()
	defer im.committing.Unlock()
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, e := range im.queue {
		if e.lock != nil {
			im.yield(e)
		}
	}
}

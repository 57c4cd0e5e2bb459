package localstore

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
)

// place unpacks contents at the path's final place, under its lock, and checks
// them; sum is called when all was read. If it fails, nothing is left there; what came
// of a NAR that broke off may be kept elsewhere (see KeepPartials).
// errAlreadyValid says that another process was faster; contents are then unread.
func (im *Import) place(ctx context.Context, e *entry, contents io.Reader, sum func() [sha256.Size]byte) error {
	err := im.lock(ctx, e)
	if err == nil {
		err = im.store.unpack(ctx, e, contents, sum)
	}
	err = nix.CheckNoSpace(err)
	if err == nil || errors.Is(err, errAlreadyValid) || errors.Is(err, nix.ErrDamaged) && im.keeps(e.info) {
		im.dropPartial(e.info.Path)
	}
	if err != nil {
		im.keep(e, err)
		return errors.Join(err, im.drop(e))
	}
	return nil
}

// lock takes the lock of a path that is not valid. Where another process has it,
// what we have is registered first, or its locks given up: that process may be
// waiting for one of those.
func (im *Import) lock(ctx context.Context, e *entry) error {
	path := im.store.RealPath(e.info.Path) + ".lock"
	lock, err := tryFileLock(path)
	if lock == nil && err == nil {
		im.addWaiting(ctx, 1)
		lock, err = waitFileLock(ctx, path)
		im.addWaiting(ctx, -1)
	}
	if err != nil {
		return err
	}
	ids, err := im.store.pathIDs(ctx, []nix.StorePath{e.info.Path})
	if err == nil && ids[0] != 0 {
		err = errAlreadyValid
	}
	if err != nil {
		return errors.Join(err, lock.release())
	}
	e.lock = lock
	return nil
}

// drop deletes what is unpacked of a path whose lock we have, and gives that up.
func (im *Import) drop(e *entry) error {
	var asideErr error
	if e.aside != "" {
		asideErr = nar.RemoveAllAt(im.store.dir, e.aside)
		e.aside = ""
	}
	if e.lock == nil {
		return asideErr
	}
	err := errors.Join(asideErr, nar.RemoveAllAt(im.store.dir, e.info.Path.Base()))
	im.abandon(err)
	err = errors.Join(err, e.lock.release())
	e.lock = nil
	return err
}

func (s *Store) unpack(ctx context.Context, e *entry, contents io.Reader, sum func() [sha256.Size]byte) error {
	base := e.info.Path.Base()
	// What a process that died has left.
	if err := nar.RemoveAllAt(s.dir, base); err != nil {
		return err
	}
	if e.lease != nil {
		e.lease.begin()
		defer e.lease.end()
	}
	err := nar.RestoreAt(ctx, contents, s.dir, base, nar.RestoreOptions{Canonical: true, OpenDirs: openDirs()})
	var malformed *nar.FormatError
	if errors.As(err, &malformed) {
		err = fmt.Errorf("%w: %w", nix.ErrDamaged, err)
	}
	if err != nil {
		return err
	}
	if rest, err := io.Copy(io.Discard, contents); err != nil {
		return err
	} else if rest > 0 {
		return &nix.SizeMismatchError{Got: e.info.NARSize - rest, Want: e.info.NARSize}
	}
	narHash := nix.SHA256Hash(sum())
	if err := e.info.CheckNAR(narHash, e.info.NARSize); err != nil {
		return err
	}
	if e.lease != nil {
		if err := e.lease.home(ctx); err != nil {
			return err
		}
	}
	if err := s.checkContentAddress(ctx, e.info, narHash); err != nil {
		return err
	}
	if e.info.Path.IsDerivation() {
		err = s.readOutputs(e)
	}
	return err
}

// checkContentAddress hashes unpacked contents as the content address demands.
// That the address belongs to the path has been checked. One that cannot be verified has
// vouched for nothing.
func (s *Store) checkContentAddress(ctx context.Context, info *nix.PathInfo, narHash nix.Hash) error {
	if info.CA == "" {
		return nil
	}
	ca, err := nix.ParseContentAddress(info.CA)
	if err != nil {
		return err
	}
	if !ca.Verifiable() || ca.Method == nix.Recursive && ca.Hash == narHash {
		return nil // a NAR of this hash does not contain its own hash part
	}
	h := newHash(ca.Hash.Algorithm())
	var digests [][]byte // each may be the right one
	if ca.Method == nix.Recursive {
		w := newModuloWriter(h, info.Path.HashPart())
		if err := nar.DumpAt(ctx, w, s.dir, info.Path.Base()); err != nil {
			return err
		}
		digests = w.finish()
	} else {
		if err := s.hashFile(h, info.Path, ca); err != nil {
			return err
		}
		digests = [][]byte{h.Sum(nil)}
	}
	for _, digest := range digests {
		if bytes.Equal(digest, ca.Hash.Bytes()) {
			return nil
		}
	}
	return fmt.Errorf("content hash is %x, the content address is %s: %w", digests[0], ca, nix.ErrDamaged)
}

// hashFile hashes contents that must be a plain file, which is not executable.
func (s *Store) hashFile(h io.Writer, p nix.StorePath, ca nix.ContentAddress) error {
	f, err := s.openFile(p)
	if err != nil {
		return fmt.Errorf("content address %s is for a plain file: %w", ca, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err == nil && st.Mode()&0o111 != 0 {
		err = fmt.Errorf("content address %s is for a file that is not executable: %w", ca, nix.ErrDamaged)
	}
	if err == nil {
		_, err = io.Copy(h, f)
	}
	return err
}

func newHash(algorithm nix.HashAlgorithm) hash.Hash {
	switch algorithm {
	case nix.MD5:
		return md5.New()
	case nix.SHA1:
		return sha1.New()
	case nix.SHA512:
		return sha512.New()
	}
	return sha256.New()
}

// openFile opens contents that must be a regular file.
func (s *Store) openFile(p nix.StorePath) (*os.File, error) {
	fd, err := unix.Openat(int(s.dir.Fd()), p.Base(), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: s.RealPath(p), Err: err}
	}
	f := os.NewFile(uintptr(fd), s.RealPath(p))
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = &os.PathError{Op: "read", Path: f.Name(), Err: errors.New("not a regular file")}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// checkPlaced checks contents that another process has unpacked: what they are, and
// their metadata.
func (s *Store) checkPlaced(ctx context.Context, info *nix.PathInfo) error {
	if err := s.checkContents(ctx, info); err != nil {
		return err
	}
	return filepath.WalkDir(s.RealPath(info.Path), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		mode := st.Mode().Perm()
		if d.Type() != fs.ModeSymlink && mode != 0o555 && (d.IsDir() || mode != 0o444) || st.ModTime().Unix() != 1 {
			return &fs.PathError{Op: "check", Path: path, Err: errors.New("mode or time is not that of a store")}
		}
		return nil
	})
}

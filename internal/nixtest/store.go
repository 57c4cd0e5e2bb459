package nixtest

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A Store is a store in memory. Its methods may be called concurrently.
type Store struct {
	Check func(*nix.PathInfo) error // asked before a path is added; nil accepts all

	mu      sync.Mutex
	objects map[nix.StorePath]Object
	held    map[nix.StorePath]bool
	roots   map[string]nix.StorePath
	built   map[nix.DrvOutput]*nix.Realisation
}

// NewStore returns a store in which objects are valid.
func NewStore(objects ...Object) *Store {
	s := &Store{
		objects: make(map[nix.StorePath]Object),
		held:    make(map[nix.StorePath]bool),
		roots:   make(map[string]nix.StorePath),
		built:   make(map[nix.DrvOutput]*nix.Realisation),
	}
	for _, o := range objects {
		s.objects[o.Info.Path] = o
	}
	return s
}

// StoreDir returns Dir.
func (s *Store) StoreDir() nix.StoreDir { return Dir }

// ValidPaths returns those of paths that are valid, in the order asked.
func (s *Store) ValidPaths(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error) {
	infos, err := s.PathInfos(ctx, paths)
	valid := make([]nix.StorePath, len(infos))
	for i, info := range infos {
		valid[i] = info.Path
	}
	return valid, err
}

// PathInfos returns copies of the infos of those of paths that are valid, in the
// order asked.
func (s *Store) PathInfos(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var infos []*nix.PathInfo
	for _, p := range paths {
		if o, ok := s.objects[p]; ok {
			infos = append(infos, cloneInfo(o.Info))
		}
	}
	return infos, context.Cause(ctx)
}

func cloneInfo(info *nix.PathInfo) *nix.PathInfo {
	c := *info
	c.References = slices.Clone(info.References)
	c.Signatures = slices.Clone(info.Signatures)
	return &c
}

// PathInfo returns a copy of p's info; the error wraps nix.ErrNotValid.
func (s *Store) PathInfo(ctx context.Context, p nix.StorePath) (*nix.PathInfo, error) {
	o, err := s.object(p)
	if err != nil {
		return nil, err
	}
	return cloneInfo(o.Info), context.Cause(ctx)
}

func (s *Store) object(p nix.StorePath) (Object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[p]
	if !ok {
		return Object{}, fmt.Errorf("%s: %w", p, nix.ErrNotValid)
	}
	return o, nil
}

// Closure returns the infos of roots and of all that they refer to. The error wraps
// nix.ErrNotValid where one of them is missing.
func (s *Store) Closure(ctx context.Context, roots []nix.StorePath) ([]*nix.PathInfo, error) {
	var infos []*nix.PathInfo
	seen := make(map[nix.StorePath]bool)
	for queue := slices.Clone(roots); len(queue) > 0; queue = queue[1:] {
		if seen[queue[0]] {
			continue
		}
		seen[queue[0]] = true
		info, err := s.PathInfo(ctx, queue[0])
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
		queue = append(queue, info.References...)
	}
	return infos, nil
}

// WriteNAR writes p's contents; the error wraps nix.ErrNotValid if there are none.
func (s *Store) WriteNAR(ctx context.Context, w io.Writer, p nix.StorePath) error {
	o, err := s.object(p)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, bytes.NewReader(o.NAR)); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// Hold remembers paths for Held.
func (s *Store) Hold(ctx context.Context, paths []nix.StorePath) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range paths {
		s.held[p] = true
	}
	return nil
}

// Held returns all paths that were ever held, sorted.
func (s *Store) Held() []nix.StorePath {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sortedKeys(s.held)
}

// All returns all valid paths, sorted.
func (s *Store) All() []nix.StorePath {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sortedKeys(s.objects)
}

func sortedKeys[V any](m map[nix.StorePath]V) []nix.StorePath {
	paths := make([]nix.StorePath, 0, len(m))
	for p := range m {
		paths = append(paths, p)
	}
	slices.SortFunc(paths, nix.StorePath.Compare)
	return paths
}

// Remove makes p not valid, as a garbage collection would, whatever refers to it.
func (s *Store) Remove(p nix.StorePath) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.objects, p)
}

// Damage changes the byte at offset of p's contents, but not p's info.
func (s *Store) Damage(p nix.StorePath, offset int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[p]
	o.NAR = slices.Clone(o.NAR)
	o.NAR[offset] ^= 1
	s.objects[p] = o
}

// Verify returns an error unless every valid path has its references and the
// contents that its info promises.
func (s *Store) Verify() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, o := range s.objects {
		if p != o.Info.Path {
			return fmt.Errorf("%s is stored as %s", o.Info.Path, p)
		}
		if err := o.verify(); err != nil {
			return err
		}
		for _, ref := range o.Info.References {
			if _, ok := s.objects[ref]; !ok {
				return fmt.Errorf("%s refers to %s: %w", p, ref, nix.ErrNotValid)
			}
		}
	}
	return nil
}

// verify compares contents with what is known of them.
func (o Object) verify() error {
	sum := nix.SHA256Hash(sha256.Sum256(o.NAR))
	if err := o.Info.CheckNAR(sum, int64(len(o.NAR))); err != nil {
		return fmt.Errorf("%s: %w", o.Info.Path, err)
	}
	if err := checkArchive(o.NAR); err != nil {
		return fmt.Errorf("%s: %w", o.Info.Path, err)
	}
	if o.Info.CA == "" {
		return nil
	}
	if err := o.Info.CheckContentAddress(); err != nil {
		return err
	}
	ca, err := nix.ParseContentAddress(o.Info.CA)
	if err != nil {
		return err
	}
	if !ca.Verifiable() {
		return nil
	}
	got, err := o.contentHash(ca)
	if err != nil {
		return fmt.Errorf("%s: %w", o.Info.Path, err)
	}
	if got == ca.Hash || ca.Method == nix.Recursive && slices.Contains(hashesModulo(o.NAR, o.Info.Path.HashPart()), ca.Hash) {
		return nil
	}
	return fmt.Errorf("%s: content hash is %s, its content address is %s: %w", o.Info.Path, got, ca, nix.ErrDamaged)
}

// contentHash hashes what a content address of that kind is about.
func (o Object) contentHash(ca nix.ContentAddress) (nix.Hash, error) {
	if ca.Method == nix.Recursive {
		return hashWith(ca.Hash.Algorithm(), o.NAR)
	}
	text, err := archiveFile(o.NAR)
	if err != nil {
		return nix.Hash{}, fmt.Errorf("content address %s is for a plain file: %w", ca, err)
	}
	return hashWith(ca.Hash.Algorithm(), []byte(text))
}

func hashWith(algo nix.HashAlgorithm, b []byte) (nix.Hash, error) {
	switch algo {
	case nix.MD5:
		sum := md5.Sum(b)
		return nix.NewHash(algo, sum[:])
	case nix.SHA1:
		sum := sha1.Sum(b)
		return nix.NewHash(algo, sum[:])
	case nix.SHA512:
		sum := sha512.Sum512(b)
		return nix.NewHash(algo, sum[:])
	}
	return nix.SHA256Hash(sha256.Sum256(b)), nil
}

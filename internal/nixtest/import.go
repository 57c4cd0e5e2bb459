package nixtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// An Importer takes paths into a store, one after another.
type Importer interface {
	// Add reads exactly info.NARSize bytes. done is called once, then or later:
	// with nil when the path is valid, or with the reason why it is refused. The
	// error returned means that the stream is out of step; done need not be called
	// any more.
	Add(ctx context.Context, info *nix.PathInfo, nar io.Reader, done func(error)) error
	// Flush returns when done was called for all that was added before.
	Flush(ctx context.Context) error
	// Close makes valid what is complete and drops what is not.
	Close() error
}

// importGroup is the number of paths that become valid together.
const importGroup = 7

// Import begins to take paths in. To be as unhelpful as a store may be, paths
// become valid in groups, the last of a group is told first, and one whose stream
// breaks is not told at all.
func (s *Store) Import(ctx context.Context) (Importer, error) {
	return &memoryImport{store: s}, nil
}

type memoryImport struct {
	store *Store

	mu    sync.Mutex
	queue []pending
}

type pending struct {
	Object
	done func(error)
}

func (im *memoryImport) Add(ctx context.Context, info *nix.PathInfo, nar io.Reader, done func(error)) error {
	content, err := io.ReadAll(io.LimitReader(nar, info.NARSize))
	if err == nil && int64(len(content)) < info.NARSize {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("read NAR: %w", err)
	}
	o := Object{cloneInfo(info), content}
	if err := im.accept(o); err != nil {
		done(err)
		return nil
	}
	im.mu.Lock()
	im.queue = append(im.queue, pending{o, done})
	full := len(im.queue) >= importGroup
	im.mu.Unlock()
	if full {
		return im.Flush(ctx)
	}
	return nil
}

func (im *memoryImport) accept(o Object) error {
	if im.store.Check != nil {
		if err := im.store.Check(o.Info); err != nil {
			return err
		}
	}
	return o.verify()
}

func (im *memoryImport) Flush(ctx context.Context) error {
	im.mu.Lock()
	defer im.mu.Unlock()
	slices.Reverse(im.queue)
	errs := im.store.register(im.queue)
	for i, p := range im.queue {
		p.done(errs[i])
	}
	im.queue = nil
	return nil
}

func (im *memoryImport) Close() error { return im.Flush(context.Background()) }

// register makes those valid whose references are valid or become so with them. A
// path that is valid already stays as it is.
func (s *Store) register(group []pending) []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := make([]error, len(group))
	registered := make([]bool, len(group))
	for progress := true; progress; {
		progress = false
		for i, p := range group {
			if registered[i] {
				continue
			}
			if errs[i] = s.missingReference(p.Info); errs[i] != nil {
				continue
			}
			registered[i], progress = true, true
			if _, ok := s.objects[p.Info.Path]; !ok {
				p.Info.Ultimate = false
				s.objects[p.Info.Path] = p.Object
			}
		}
	}
	return errs
}

func (s *Store) missingReference(info *nix.PathInfo) error {
	var errs []error
	for _, ref := range info.References {
		if _, ok := s.objects[ref]; !ok && ref != info.Path {
			errs = append(errs, fmt.Errorf("it refers to %s: %w", ref, nix.ErrNotValid))
		}
	}
	return errors.Join(errs...)
}

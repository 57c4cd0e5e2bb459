package localstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/copy-closure/copy-closure/internal/nix"
)

const (
	maxDerivation      = 64 << 20 // bytes of a .drv file
	largeDerivation    = 1 << 20  // bytes; of those one is in memory at a time
	maxDerivationGraph = 1 << 19  // derivations that one may depend on, of which nothing is known yet
	maxDrvHashes       = 1 << 17  // that are remembered, about 100 bytes each
)

// A drvHashes remembers the hashes of derivations that were sound.
type drvHashes struct {
	mu     sync.Mutex
	hashes map[drvKey]nix.DerivationHash

	large sync.Mutex // held while a large derivation is read
}

// A drvKey identifies a store path in less memory than its text.
type drvKey [sha256.Size]byte

func drvKeyOf(p nix.StorePath) drvKey { return sha256.Sum256([]byte(p.String())) }

func (h *drvHashes) get(key drvKey) (nix.DerivationHash, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	hash, found := h.hashes[key]
	return hash, found
}

func (h *drvHashes) put(key drvKey, hash nix.DerivationHash) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hashes == nil || len(h.hashes) >= maxDrvHashes {
		h.hashes = make(map[drvKey]nix.DerivationHash)
	}
	h.hashes[key] = hash
}

// withDerivation reads the .drv file p, valid or not, and calls use.
func (s *Store) withDerivation(p nix.StorePath, use func(*nix.Derivation) error) error {
	f, err := s.openFile(p)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() > maxDerivation {
		return fmt.Errorf("derivation is larger than %d MiB", maxDerivation>>20)
	}
	if st.Size() > largeDerivation {
		s.drvs.large.Lock()
		defer s.drvs.large.Unlock()
	}
	var text strings.Builder
	text.Grow(int(st.Size()))
	if _, err := io.CopyN(&text, f, st.Size()); err != nil {
		return err
	}
	drv, err := s.config.StoreDir.ParseDerivation(p, text.String())
	if err != nil {
		return fmt.Errorf("%w: %w", err, nix.ErrDamaged)
	}
	return use(drv)
}

// A drvChecker checks the derivations of one group of paths.
type drvChecker struct {
	store  *Store
	ctx    context.Context
	hashes map[drvKey]nix.DerivationHash // of all that were needed, as others may be forgotten
}

func (s *Store) newDrvChecker(ctx context.Context) *drvChecker {
	return &drvChecker{store: s, ctx: ctx, hashes: make(map[drvKey]nix.DerivationHash)}
}

// check returns an error unless the outputs that the .drv file p claims follow from it. Its
// inputs must be valid, or have been checked before.
func (c *drvChecker) check(p nix.StorePath) error {
	if err := c.checkOutputs(p); err != nil {
		return fmt.Errorf("derivation %s: %w", p, err)
	}
	return nil
}

func (c *drvChecker) checkOutputs(p nix.StorePath) error {
	var inputs []nix.StorePath
	err := c.store.withDerivation(p, func(drv *nix.Derivation) error {
		inputs = c.missing(drv)
		return nil
	})
	if err == nil {
		err = c.hashAll(inputs)
	}
	if err != nil {
		return err
	}
	return c.store.withDerivation(p, func(drv *nix.Derivation) error {
		if err := drv.CheckOutputs(c.store.config.StoreDir, c.known); err != nil {
			return fmt.Errorf("%w: %w", err, nix.ErrDamaged)
		}
		if len(c.missing(drv)) == 0 {
			return c.hash(p, drv)
		}
		return nil // it is needed by others, who will find its inputs
	})
}

// missing returns those inputs of a derivation whose hashes are needed and not known.
func (c *drvChecker) missing(drv *nix.Derivation) (missing []nix.StorePath) {
	if !drv.NeedsInputs() {
		return nil
	}
	for _, in := range drv.Inputs {
		if _, err := c.known(in.Path); err != nil {
			missing = append(missing, in.Path)
		}
	}
	return missing
}

// known returns a hash that was computed before.
func (c *drvChecker) known(p nix.StorePath) (nix.DerivationHash, error) {
	key := drvKeyOf(p)
	if hash, found := c.hashes[key]; found {
		return hash, nil
	}
	hash, found := c.store.drvs.get(key)
	if !found {
		return hash, fmt.Errorf("the hash of %s is not known", p)
	}
	c.hashes[key] = hash
	return hash, nil
}

// hash computes the hash of a derivation whose inputs are known.
func (c *drvChecker) hash(p nix.StorePath, drv *nix.Derivation) error {
	hash, err := drv.Hash(c.known)
	if err != nil {
		return err
	}
	key := drvKeyOf(p)
	c.hashes[key] = hash
	c.store.drvs.put(key, hash)
	return nil
}

// hashAll computes the hashes of valid derivations, and of all that they depend on. Those
// were checked when they became valid.
func (c *drvChecker) hashAll(todo []nix.StorePath) error {
	begun := make(map[nix.StorePath]bool)
	for len(todo) > 0 {
		if err := context.Cause(c.ctx); err != nil {
			return err
		}
		p := todo[len(todo)-1]
		missing, err := c.hashValid(p)
		if err != nil {
			return fmt.Errorf("input %s: %w", p, err)
		}
		if len(missing) == 0 {
			todo = todo[:len(todo)-1]
			continue
		}
		if begun[p] {
			return fmt.Errorf("input %s depends on itself", p)
		}
		begun[p] = true
		if todo = append(todo, missing...); len(begun) > maxDerivationGraph || len(todo) > 4*maxDerivationGraph {
			return errors.New("it depends on too many derivations")
		}
	}
	return nil
}

// hashValid computes the hash of one valid derivation, or returns the inputs of which the
// hashes are missing.
func (c *drvChecker) hashValid(p nix.StorePath) (missing []nix.StorePath, err error) {
	if _, err := c.known(p); err == nil {
		return nil, nil
	}
	if err := c.store.checkValid(c.ctx, p); err != nil {
		return nil, err
	}
	err = c.store.withDerivation(p, func(drv *nix.Derivation) error {
		if missing = c.missing(drv); len(missing) > 0 {
			return nil
		}
		return c.hash(p, drv)
	})
	return missing, err
}

// checkDerivations checks the derivations of a group, of which each comes behind what it
// depends on. It stops at the first that is not sound.
func (im *Import) checkDerivations(ctx context.Context, ready []*entry) (bad *entry, err error) {
	checker := im.store.newDrvChecker(ctx)
	for _, e := range ready {
		if !e.info.Path.IsDerivation() || e.sound {
			continue
		}
		if err := checker.check(e.info.Path); err != nil {
			return e, err
		}
		e.sound = true
	}
	return nil, nil
}

// readOutputs notes where the outputs of an unpacked .drv file go, and which derivations
// it needs beside its references.
func (s *Store) readOutputs(e *entry) error {
	return s.withDerivation(e.info.Path, func(drv *nix.Derivation) error {
		e.outputs = drv.Outputs
		if drv.NeedsInputs() {
			for _, in := range drv.Inputs {
				if !slices.Contains(e.info.References, in.Path) {
					e.inputs = append(e.inputs, in.Path)
				}
			}
		}
		return nil
	})
}

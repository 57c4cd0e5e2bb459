package nix

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A PathInfo is what a store knows of one of its valid paths.
type PathInfo struct {
	Path       StorePath
	NARHash    Hash // always SHA256
	NARSize    int64
	References []StorePath // sorted, each once; may include Path itself
	Deriver    StorePath   // zero if not known
	Signatures []string    // name:base64 each, as they came
	CA         string      // content address, empty for an input-addressed path
	Registered time.Time   // zero if not known; whole seconds
	Ultimate   bool        // built here; never taken over from elsewhere
}

// SortReferences brings info.References into their canonical order, each once.
func (info *PathInfo) SortReferences() {
	slices.SortFunc(info.References, StorePath.Compare)
	info.References = slices.Compact(info.References)
}

// Fingerprint returns the text that a signature of info signs. It is an error
// where the NAR's hash or size is not known.
func (info *PathInfo) Fingerprint() (string, error) {
	if info.NARSize <= 0 || info.NARHash.Algorithm() != SHA256 {
		return "", fmt.Errorf("%s: a path without NAR hash and size has no fingerprint", info.Path)
	}
	var b strings.Builder
	b.WriteString("1;" + info.Path.String() + ";" + info.NARHash.String() + ";")
	b.WriteString(strconv.FormatInt(info.NARSize, 10) + ";")
	for i, ref := range info.References {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(ref.String())
	}
	return b.String(), nil
}

// CheckNAR compares what was read with what info promises; the error is a
// *SizeMismatchError or a *HashMismatchError.
func (info *PathInfo) CheckNAR(hash Hash, size int64) error {
	if size != info.NARSize {
		return &SizeMismatchError{Got: size, Want: info.NARSize}
	}
	if hash != info.NARHash {
		return &HashMismatchError{Got: hash, Want: info.NARHash}
	}
	return nil
}

// Limits on the references of a path. Their names fit into a narinfo and into a message of
// every protocol.
const (
	maxReferences     = 1 << 16
	maxReferenceBytes = 3 << 20
)

// Check returns an error unless info has the form that every store demands of a path that
// is to become valid: hash and size of the NAR, references and a deriver from the store
// directory of the path, and a content address that belongs to the path. A derivation has
// none but that of its text. Signatures and contents are not looked at.
func (info *PathInfo) Check() error {
	if info.Path.IsZero() {
		return errors.New("a path info has no path")
	}
	if info.NARHash.Algorithm() != SHA256 || info.NARSize <= 0 {
		return fmt.Errorf("%s: its NAR's hash or size is not known", info.Path)
	}
	if len(info.References) > maxReferences {
		return fmt.Errorf("%s has %d references, more than %d", info.Path, len(info.References), maxReferences)
	}
	dir, size := info.Path.Dir(), 0
	for _, ref := range info.References {
		if ref.IsZero() || ref.Dir() != dir {
			return fmt.Errorf("reference of %s: %q is not in the store %s", info.Path, ref, dir)
		}
		size += len(ref.Base()) + 1
	}
	if size > maxReferenceBytes {
		return fmt.Errorf("the names of the references of %s have more than %d MiB", info.Path, maxReferenceBytes>>20)
	}
	if !info.Deriver.IsZero() && info.Deriver.Dir() != dir {
		return fmt.Errorf("deriver of %s: %q is not in the store %s", info.Path, info.Deriver, dir)
	}
	if info.CA == "" {
		return nil
	}
	if info.Path.IsDerivation() && !strings.HasPrefix(info.CA, string(Text)+":") {
		return fmt.Errorf("%s: the content address of a derivation is that of its text, not %q", info.Path, clip(info.CA))
	}
	return info.CheckContentAddress()
}

package nix

import (
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

package nix

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// An IngestMethod says over which bytes a content address is computed.
type IngestMethod string

// The methods of Nix. Git is experimental there; we compute no such hash.
const (
	Text      IngestMethod = "text"      // the bytes of a file that may have references
	Flat      IngestMethod = "fixed"     // the bytes of a file without references
	Recursive IngestMethod = "fixed:r"   // the NAR
	Git       IngestMethod = "fixed:git" // the object of Git
)

// A ContentAddress names content by its hash; with a name and references it
// determines a store path.
type ContentAddress struct {
	Method IngestMethod
	Hash   Hash
}

// ParseContentAddress reads the form that String prints, such as
// fixed:r:sha256:04zw….
func ParseContentAddress(s string) (ContentAddress, error) {
	for _, method := range []IngestMethod{Text, Recursive, Git, Flat} {
		rest, ok := strings.CutPrefix(s, string(method)+":")
		if !ok {
			continue
		}
		hash, err := ParseHash(rest)
		if err != nil {
			return ContentAddress{}, fmt.Errorf("content address %q: %w", clip(s), err)
		}
		if method == Text && hash.Algorithm() != SHA256 {
			return ContentAddress{}, fmt.Errorf("content address %q: text is hashed with sha256", clip(s))
		}
		if method == Git && hash.Algorithm() != SHA1 && hash.Algorithm() != SHA256 {
			return ContentAddress{}, fmt.Errorf("content address %q: git hashes with sha1 or sha256", clip(s))
		}
		return ContentAddress{method, hash}, nil
	}
	return ContentAddress{}, fmt.Errorf("content address %q has an unknown method", clip(s))
}

// String returns the form of the ca field.
func (ca ContentAddress) String() string { return string(ca.Method) + ":" + ca.Hash.String() }

// Verifiable reports whether we can compute the hash from contents. An address of which
// we cannot vouches for no path.
func (ca ContentAddress) Verifiable() bool {
	return ca.Method != Git && ca.Hash.Algorithm() != BLAKE3
}

// ContentAddressedPath computes the store path of an object with that content
// address, name and references. self says that the object refers to itself; it
// is possible only for Recursive with SHA256, and the hash is then modulo the
// object's own hash part. References must not contain the object itself.
func (d StoreDir) ContentAddressedPath(name string, ca ContentAddress, references []StorePath, self bool) (StorePath, error) {
	if err := CheckName(name); err != nil {
		return StorePath{}, fmt.Errorf("store path name %q: %w", clip(name), err)
	}
	refs := slices.Clone(references)
	slices.SortFunc(refs, StorePath.Compare)
	switch {
	case ca.Method == Text && !self:
		return d.makePath(withReferences("text", refs, false), ca.Hash.Hex(), name), nil
	case ca.Method == Recursive && ca.Hash.Algorithm() == SHA256:
		return d.makePath(withReferences("source", refs, self), ca.Hash.Hex(), name), nil
	case len(refs) > 0 || self:
		return StorePath{}, fmt.Errorf("%s: content address %s cannot have references", name, ca)
	}
	method := ""
	switch ca.Method {
	case Recursive:
		method = "r:"
	case Git:
		method = "git:"
	}
	inner := sha256.Sum256([]byte("fixed:out:" + method + string(ca.Hash.Algorithm()) + ":" + ca.Hash.Hex() + ":"))
	return d.makePath("output:out", hex.EncodeToString(inner[:]), name), nil
}

func withReferences(kind string, refs []StorePath, self bool) string {
	var b strings.Builder
	b.WriteString(kind)
	for _, ref := range refs {
		b.WriteString(":" + ref.String())
	}
	if self {
		b.WriteString(":self")
	}
	return b.String()
}

// makePath is Nix's digest of a type, an inner digest and a name; see
// https://nix.dev/manual/nix/latest/protocols/store-path.
func (d StoreDir) makePath(kind, innerHex, name string) StorePath {
	sum := sha256.Sum256([]byte(kind + ":sha256:" + innerHex + ":" + string(d) + ":" + name))
	var folded [20]byte
	for i, b := range sum {
		folded[i%len(folded)] ^= b
	}
	return StorePath{string(d) + "/" + EncodeNix32(folded[:]) + "-" + name}
}

// ContentAddressed reports whether info has a content address that belongs to its path
// and that whoever stores the contents can verify. It looks at no content.
func (info *PathInfo) ContentAddressed() bool {
	ca, err := ParseContentAddress(info.CA)
	return err == nil && ca.Verifiable() && info.CheckContentAddress() == nil
}

// CheckContentAddress returns an error unless info's path is the one that its
// content address, name and references determine. It looks at no content.
func (info *PathInfo) CheckContentAddress() error {
	ca, err := ParseContentAddress(info.CA)
	if err != nil {
		return fmt.Errorf("%s: %w", info.Path, err)
	}
	others := make([]StorePath, 0, len(info.References))
	for _, ref := range info.References {
		if ref != info.Path {
			others = append(others, ref)
		}
	}
	self := len(others) < len(info.References)
	if ca.Method != Text && (ca.Method != Recursive || ca.Hash.Algorithm() != SHA256) {
		self = false // which the path does not depend on, and Nix 2.8 takes
	}
	want, err := info.Path.Dir().ContentAddressedPath(info.Path.Name(), ca, others, self)
	if err != nil {
		return err
	}
	if want != info.Path {
		return fmt.Errorf("%s claims the content address %s, which belongs to %s", info.Path, ca, want)
	}
	return nil
}

package nix

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
)

// A HashAlgorithm is the name of a hash function as Nix writes it.
type HashAlgorithm string

// The hash functions that a content address may use. NAR hashes are always SHA256.
// BLAKE3 is experimental in Nix; we compute no such hash.
const (
	MD5    HashAlgorithm = "md5"
	SHA1   HashAlgorithm = "sha1"
	SHA256 HashAlgorithm = "sha256"
	SHA512 HashAlgorithm = "sha512"
	BLAKE3 HashAlgorithm = "blake3"
)

// size is the digest's length in bytes, 0 for an unknown algorithm.
func (a HashAlgorithm) size() int {
	switch a {
	case MD5:
		return 16
	case SHA1:
		return 20
	case SHA256, BLAKE3:
		return 32
	case SHA512:
		return 64
	}
	return 0
}

// A Hash is a digest with its algorithm. The zero Hash means "not known".
// Hashes are comparable.
type Hash struct {
	algo   HashAlgorithm
	digest string // raw bytes, of the algorithm's length
}

// NewHash makes a Hash of a raw digest.
func NewHash(algo HashAlgorithm, digest []byte) (Hash, error) {
	if algo.size() == 0 {
		return Hash{}, fmt.Errorf("unknown hash algorithm %q", string(algo))
	}
	if len(digest) != algo.size() {
		return Hash{}, fmt.Errorf("%s digest has %d bytes, want %d", algo, len(digest), algo.size())
	}
	return Hash{algo, string(digest)}, nil
}

// SHA256Hash wraps a digest made by crypto/sha256.
func SHA256Hash(sum [sha256.Size]byte) Hash { return Hash{SHA256, string(sum[:])} }

// ParseHash reads algo:digest with the digest in base 16, nix32 or base 64, or
// the SRI form algo-base64.
func ParseHash(s string) (Hash, error) {
	i := strings.IndexAny(s, ":-")
	if i < 0 {
		return Hash{}, fmt.Errorf("hash %q has no algorithm", clip(s))
	}
	if s[i] == '-' && !isBase64Len(HashAlgorithm(s[:i]), len(s)-i-1) {
		return Hash{}, fmt.Errorf("hash %q is not in SRI form", clip(s))
	}
	return ParseDigest(HashAlgorithm(s[:i]), s[i+1:])
}

// ParseDigest reads a digest without its algorithm, in base 16, nix32 or
// base 64; its length tells which.
func ParseDigest(algo HashAlgorithm, s string) (Hash, error) {
	n := algo.size()
	if n == 0 {
		return Hash{}, fmt.Errorf("unknown hash algorithm %q", clip(string(algo)))
	}
	var digest []byte
	var err error
	switch {
	case len(s) == hex.EncodedLen(n):
		digest, err = hex.DecodeString(s)
	case len(s) == nix32Len(n):
		digest, err = DecodeNix32(s)
	case isBase64Len(algo, len(s)):
		digest, err = base64.StdEncoding.Strict().DecodeString(s)
	default:
		return Hash{}, fmt.Errorf("%s digest %q has a wrong length", algo, clip(s))
	}
	if err != nil {
		return Hash{}, fmt.Errorf("%s digest %q: %w", algo, clip(s), err)
	}
	return NewHash(algo, digest)
}

func isBase64Len(algo HashAlgorithm, n int) bool {
	return n > 0 && n == base64.StdEncoding.EncodedLen(algo.size())
}

// Algorithm returns the hash function, empty for the zero Hash.
func (h Hash) Algorithm() HashAlgorithm { return h.algo }

// IsZero reports whether h is not known.
func (h Hash) IsZero() bool { return h.algo == "" }

// Bytes returns a copy of the digest.
func (h Hash) Bytes() []byte { return []byte(h.digest) }

// Hex returns the digest in lower-case base 16, without the algorithm.
func (h Hash) Hex() string { return hex.EncodeToString([]byte(h.digest)) }

// Nix32 returns the digest in nix32, without the algorithm.
func (h Hash) Nix32() string { return EncodeNix32([]byte(h.digest)) }

// String returns algo:nix32, the form of fingerprints and content addresses.
func (h Hash) String() string {
	if h.IsZero() {
		return ""
	}
	return string(h.algo) + ":" + h.Nix32()
}

// clip shortens foreign text for an error message.
func clip(s string) string {
	const limit = 100
	if len(s) > limit {
		return s[:limit] + "…"
	}
	return s
}

// Package nix holds Nix's values: store paths, hashes, path infos,
// signatures and keys, content addresses, derivation text. It does no I/O.
package nix

import (
	"fmt"
	"path"
	"strings"
)

const (
	hashPartLen = 32  // nix32 characters of a store path's hash part
	maxNameLen  = 211 // of a store path's name
)

// A StoreDir is the logical directory that store paths lie in. It takes part in
// every path's hash, so stores with different directories do not mix.
type StoreDir string

// DefaultStoreDir is where nearly every store claims to be.
const DefaultStoreDir StoreDir = "/nix/store"

// A StorePath is a valid path directly in a store directory, such as
// /nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-hello-2.12.1. The zero value means
// "none". Store paths are comparable and can be map keys.
type StorePath struct{ s string }

// Parse reads a full path, in the exact form that String prints.
func (d StoreDir) Parse(s string) (StorePath, error) {
	base, ok := strings.CutPrefix(s, string(d)+"/")
	if !ok {
		return StorePath{}, fmt.Errorf("%q is not in the store %s", clip(s), d)
	}
	if err := checkBase(base); err != nil {
		return StorePath{}, fmt.Errorf("%q is no store path: %w", clip(s), err)
	}
	return StorePath{s}, nil
}

// ParseBase reads a path's last component, hash-name.
func (d StoreDir) ParseBase(base string) (StorePath, error) {
	if err := checkBase(base); err != nil {
		return StorePath{}, fmt.Errorf("%q is no store path name: %w", clip(base), err)
	}
	return StorePath{string(d) + "/" + base}, nil
}

// Split finds the store path that p is or lies beneath, and the rest of p
// without a leading slash. p is cleaned first; links are not followed.
func (d StoreDir) Split(p string) (sp StorePath, rest string, err error) {
	p = path.Clean(p)
	inside, ok := strings.CutPrefix(p, string(d)+"/")
	if !ok {
		return StorePath{}, "", fmt.Errorf("%q is not in the store %s", clip(p), d)
	}
	base, rest, _ := strings.Cut(inside, "/")
	sp, err = d.ParseBase(base)
	return sp, rest, err
}

// Check returns an error if d cannot be a store directory: it must be absolute
// and clean.
func (d StoreDir) Check() error {
	if !path.IsAbs(string(d)) || path.Clean(string(d)) != string(d) || d == "/" {
		return fmt.Errorf("store directory %q is not an absolute, clean path", clip(string(d)))
	}
	return nil
}

func checkBase(base string) error {
	if len(base) <= hashPartLen+1 {
		return fmt.Errorf("it is shorter than a hash and a name")
	}
	for i := range hashPartLen {
		if nix32Digit[base[i]] == 0xff {
			return fmt.Errorf("%q cannot be in its hash part", base[i])
		}
	}
	if base[hashPartLen] != '-' {
		return fmt.Errorf("no dash follows its hash part")
	}
	return CheckName(base[hashPartLen+1:])
}

// CheckName returns an error if name cannot be the name of a store path: 1 to 211
// of the characters 0-9 A-Z a-z + - . _ ? =, and nothing that looks like "." or "..".
func CheckName(name string) error {
	if name == "" {
		return fmt.Errorf("the name is empty")
	}
	if len(name) > maxNameLen {
		return fmt.Errorf("the name is longer than %d characters", maxNameLen)
	}
	for i := range len(name) {
		if !isNameByte(name[i]) {
			return fmt.Errorf("%q cannot be in a name", name[i])
		}
	}
	first, _, _ := strings.Cut(name, "-")
	if first == "." || first == ".." {
		return fmt.Errorf("the name begins like a relative path")
	}
	return nil
}

func isNameByte(c byte) bool {
	switch {
	case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		return true
	}
	return strings.IndexByte("+-._?=", c) >= 0
}

// String returns the full path; empty for the zero StorePath.
func (p StorePath) String() string { return p.s }

// IsZero reports whether p is no path.
func (p StorePath) IsZero() bool { return p.s == "" }

// Base returns the last component, hash-name.
func (p StorePath) Base() string { return p.s[strings.LastIndexByte(p.s, '/')+1:] }

// Dir returns the store directory.
func (p StorePath) Dir() StoreDir { return StoreDir(p.s[:strings.LastIndexByte(p.s, '/')]) }

// HashPart returns the 32 characters before the name.
func (p StorePath) HashPart() string { return p.Base()[:hashPartLen] }

// Name returns what follows the hash part and its dash.
func (p StorePath) Name() string { return p.Base()[hashPartLen+1:] }

// IsDerivation reports whether p names a derivation file.
func (p StorePath) IsDerivation() bool { return strings.HasSuffix(p.s, drvExtension) }

// Compare orders store paths as Nix does, by the bytes of their printed form.
func (p StorePath) Compare(q StorePath) int { return strings.Compare(p.s, q.s) }

// MarshalText returns the full path.
func (p StorePath) MarshalText() ([]byte, error) { return []byte(p.s), nil }

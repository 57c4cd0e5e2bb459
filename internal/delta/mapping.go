package delta

import (
	"slices"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nix"
)

const hashPartSize = 32

type hashPart [hashPartSize]byte

// A Mapping says which hash parts in a base stand for which in the new archive.
// It is not part of a delta: both ends compute it from the path infos that they
// have. Its zero value replaces nothing. A Mapping does not change and may be used
// by many.
type Mapping struct {
	parts map[hashPart]hashPart
}

// MapReferences maps the path and the references of a base to those of the path
// that is to be made from it. References correspond if they have the same name,
// or else the same name without version; where several do, none is mapped. Only
// Path and References are looked at.
func MapReferences(base, want *nix.PathInfo) Mapping {
	m := Mapping{parts: make(map[hashPart]hashPart)}
	m.add(base.Path, want.Path)
	olds, news := without(base, want), without(want, base)
	olds, news = m.pair(olds, news, nix.StorePath.Name)
	m.pair(olds, news, func(p nix.StorePath) string { return unversioned(p.Name()) })
	return m
}

// without returns the references of a that b does not have, but for a itself.
func without(a, b *nix.PathInfo) []nix.StorePath {
	return slices.DeleteFunc(slices.Clone(a.References), func(p nix.StorePath) bool {
		return p == a.Path || p == b.Path || slices.Contains(b.References, p)
	})
}

// pair maps those of olds to those of news of which there is one each with a key,
// and returns the others.
func (m Mapping) pair(olds, news []nix.StorePath, key func(nix.StorePath) string) (restOld, restNew []nix.StorePath) {
	byKey := make(map[string][2][]nix.StorePath)
	for i, list := range [2][]nix.StorePath{olds, news} {
		for _, p := range list {
			pair := byKey[key(p)]
			pair[i] = append(pair[i], p)
			byKey[key(p)] = pair
		}
	}
	for _, pair := range byKey {
		if len(pair[0]) == 1 && len(pair[1]) == 1 {
			m.add(pair[0][0], pair[1][0])
			continue
		}
		restOld = append(restOld, pair[0]...)
		restNew = append(restNew, pair[1]...)
	}
	return restOld, restNew
}

func (m Mapping) add(from, to nix.StorePath) {
	if from != to {
		m.parts[hashPart([]byte(from.HashPart()))] = hashPart([]byte(to.HashPart()))
	}
}

// unversioned returns a name without its version: without what follows the first
// dash that no letter follows, as Nix has it. A last word of letters stays, since
// it names an output: openssl-3.0.8-dev is another thing than openssl-3.0.8. So
// does what tells a derivation from what it builds.
func unversioned(name string) string {
	name, isDerivation := strings.CutSuffix(name, ".drv")
	at := 0
	for at < len(name) && (name[at] != '-' || at+1 < len(name) && isLetter(name[at+1])) {
		at++
	}
	key := name[:at]
	if last := strings.LastIndexByte(name, '-'); last > at && isWord(name[last+1:]) {
		key += name[last:]
	}
	if isDerivation {
		key += ".drv"
	}
	return key
}

func isWord(s string) bool {
	for i := range len(s) {
		if !isLetter(s[i]) {
			return false
		}
	}
	return s != ""
}

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }

// find appends to hits where in b hash parts stand that are mapped, in order.
func (m Mapping) find(b []byte, hits []int) []int {
	for i := 0; i+hashPartSize <= len(b); {
		// From behind: a byte that cannot be in a hash part rules out all
		// places that include it.
		j := hashPartSize - 1
		for j >= 0 && nix32[b[i+j]] {
			j--
		}
		if j >= 0 {
			i += j + 1
			continue
		}
		if _, ok := m.parts[hashPart(b[i:])]; ok {
			hits = append(hits, i)
		}
		i++
	}
	return hits
}

// replace replaces the hash parts at hits, which find has found in b. Where two
// overlap, the later one is written over the earlier: what a byte becomes depends
// on the 31 bytes around it only.
func (m Mapping) replace(b []byte, hits []int) {
	parts := make([]hashPart, len(hits))
	for k, i := range hits {
		parts[k] = m.parts[hashPart(b[i:])]
	}
	for k, i := range hits {
		copy(b[i:], parts[k][:])
	}
}

// nix32 tells which bytes are digits of Nix's base 32.
var nix32 = func() (t [256]bool) {
	for _, c := range "0123456789abcdfghijklmnpqrsvwxyz" {
		t[c] = true
	}
	return t
}()

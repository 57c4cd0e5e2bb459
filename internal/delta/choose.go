package delta

import (
	"time"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A Candidate is a path that may be a base.
type Candidate struct {
	Path       nix.StorePath
	Here       bool      // the sender has it too: the delta will be smaller
	Registered time.Time // zero if not known
	Files      []string  // paths of its regular files; nil if not known
}

// Bases finds for a path the one among many to compute a delta against. It does not
// change and may be used by many.
type Bases struct {
	candidates []Candidate
	named      map[string][]int // by name
	keyed      map[string][]int // by name without version
	files      map[string][]int // by the paths of files
}

// NewBases makes tables of the candidates, which it keeps.
func NewBases(candidates []Candidate) *Bases {
	b := &Bases{
		candidates: candidates,
		named:      make(map[string][]int),
		keyed:      make(map[string][]int),
		files:      make(map[string][]int),
	}
	for i, c := range candidates {
		name := c.Path.Name()
		b.named[name] = append(b.named[name], i)
		b.keyed[unversioned(name)] = append(b.keyed[unversioned(name)], i)
		for _, f := range c.Files {
			b.files[f] = append(b.files[f], i)
		}
	}
	return b
}

// Choose returns a base for want: one with the same name, or else with the same
// name without version, or else, if files are given, one that has at least half of
// them. Of several it takes one that is Here, then the one whose name, or whose
// files, agree most, then the one registered last. Want itself is never chosen. It
// returns false if there is none.
func (b *Bases) Choose(want nix.StorePath, files []string) (nix.StorePath, bool) {
	agree := func(i int) int { return commonPrefix(b.candidates[i].Path.Name(), want.Name()) }
	for _, list := range [][]int{b.named[want.Name()], b.keyed[unversioned(want.Name())]} {
		if best, ok := b.best(list, want, agree); ok {
			return best, true
		}
	}
	shared := make(map[int]int)
	for _, f := range files {
		for _, i := range b.files[f] {
			shared[i]++
		}
	}
	var enough []int
	for i, n := range shared {
		if 2*n >= len(files) {
			enough = append(enough, i)
		}
	}
	return b.best(enough, want, func(i int) int { return shared[i] })
}

// best returns the best of the candidates in list.
func (b *Bases) best(list []int, want nix.StorePath, agree func(int) int) (nix.StorePath, bool) {
	best := -1
	for _, i := range list {
		if b.candidates[i].Path != want && (best < 0 || b.better(i, best, agree)) {
			best = i
		}
	}
	if best < 0 {
		return nix.StorePath{}, false
	}
	return b.candidates[best].Path, true
}

// better tells whether candidate i is to be preferred to j.
func (b *Bases) better(i, j int, agree func(int) int) bool {
	c, d := &b.candidates[i], &b.candidates[j]
	if c.Here != d.Here {
		return c.Here
	}
	if x, y := agree(i), agree(j); x != y {
		return x > y
	}
	if !c.Registered.Equal(d.Registered) {
		return c.Registered.After(d.Registered)
	}
	return c.Path.Compare(d.Path) < 0
}

func commonPrefix(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

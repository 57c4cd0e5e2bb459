package nixtest

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A Closure is a list of objects, each behind those that it refers to.
type Closure []Object

// Infos returns the path infos in the same order.
func (c Closure) Infos() []*nix.PathInfo {
	infos := make([]*nix.PathInfo, len(c))
	for i, o := range c {
		infos[i] = o.Info
	}
	return infos
}

// Paths returns the store paths in the same order.
func (c Closure) Paths() []nix.StorePath {
	paths := make([]nix.StorePath, len(c))
	for i, o := range c {
		paths[i] = o.Info.Path
	}
	return paths
}

// Top returns the last path, which refers to all others, in some steps, wherever
// the closure was made by Chain or Diamond.
func (c Closure) Top() nix.StorePath { return c[len(c)-1].Info.Path }

// Chain makes n objects of which each refers to the one before.
func Chain(n int) Closure {
	var c Closure
	for i := range n {
		var refs []nix.StorePath
		if i > 0 {
			refs = []nix.StorePath{c[i-1].Info.Path}
		}
		c = append(c, Source(fmt.Sprintf("chain-%d", i), tree(fmt.Sprint(i), refs), refs...))
	}
	return c
}

// Diamond makes four objects: the last refers to two that refer to the first.
func Diamond() Closure {
	bottom := Source("bottom", tree("bottom", nil))
	makeSide := func(name string) Object {
		refs := []nix.StorePath{bottom.Info.Path}
		return Source(name, tree(name, refs), refs...)
	}
	left, right := makeSide("left"), makeSide("right")
	refs := []nix.StorePath{left.Info.Path, right.Info.Path}
	return Closure{bottom, left, right, Source("top", tree("top", refs), refs...)}
}

// Random makes n objects of all kinds, with up to four references each and up to
// 16 KiB of data. The same seed makes the same objects.
func Random(seed uint64, n int) Closure {
	rng := rand.New(rand.NewPCG(seed, 0))
	var c Closure
	for i := range n {
		var refs []nix.StorePath
		for range min(rng.IntN(5), i) {
			refs = append(refs, c[rng.IntN(i)].Info.Path)
		}
		name := fmt.Sprintf("random-%d", i)
		data := randomText(rng, rng.IntN(16<<10))
		selfTree := func(self string) Node {
			n := tree(data, refs)
			n.Entries["self"] = Node{Content: self}
			return n
		}
		switch rng.IntN(4) {
		case 0:
			c = append(c, Source(name, tree(data, refs), refs...))
		case 1:
			// Nix 2.8 takes it, and recorded transcripts hold it.
			c = append(c, OldSelfSource(name, selfTree, refs...))
		case 2:
			c = append(c, Output(fmt.Sprint(seed, name), name, selfTree, refs...))
		case 3:
			c = append(c, Text(name, data+lines(refs), refs...))
		}
	}
	return c
}

// tree makes a directory with one of everything, which contains refs.
func tree(data string, refs []nix.StorePath) Node {
	return Node{Entries: map[string]Node{
		"bin":        {Entries: map[string]Node{"run": {Content: "#!/bin/sh\n", Executable: true}}},
		"data":       {Content: data},
		"empty":      {Entries: map[string]Node{}},
		"link":       {Target: "bin/run"},
		"references": {Content: lines(refs)},
	}}
}

func lines(refs []nix.StorePath) string {
	var b strings.Builder
	for _, ref := range refs {
		b.WriteString(ref.String() + "\n")
	}
	return b.String()
}

func randomText(rng *rand.Rand, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(' ' + rng.IntN(95))
	}
	return string(b)
}

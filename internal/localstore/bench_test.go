package localstore_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// madeUp returns n infos in closures of size paths, each with some references to
// those before it in its closure.
func madeUp(n, size, references int) []*nix.PathInfo {
	rng := rand.New(rand.NewPCG(1, 1))
	infos := make([]*nix.PathInfo, n)
	for i := range infos {
		sum := sha256.Sum256(fmt.Append(nil, i))
		p, err := nix.DefaultStoreDir.ParseBase(nix.EncodeNix32(sum[:20]) + fmt.Sprintf("-package-%d", i))
		if err != nil {
			panic(err)
		}
		info := &nix.PathInfo{Path: p, NARHash: nix.SHA256Hash(sum), NARSize: 1000, Signatures: []string{"cache.example.org-1:" + strings.Repeat("A", 88)}}
		first := i / size * size
		if i > first {
			info.References = append(info.References, infos[i-1].Path)
		}
		for range min(references, i-first) {
			info.References = append(info.References, infos[first+rng.IntN(i-first)].Path)
		}
		info.SortReferences()
		infos[i] = info
	}
	return infos
}

// BenchmarkClosure asks for closures in small and large databases.
func BenchmarkClosure(b *testing.B) {
	for _, size := range []struct{ paths, closure int }{{5000, 5000}, {300_000, 50}, {300_000, 5000}} {
		root := tempDir(b)
		s := openStore(b, localstore.Under(root))
		infos := madeUp(size.paths, size.closure, 9)
		if err := localstore.Register(b.Context(), s, infos); err != nil {
			b.Fatal(err)
		}
		top := infos[len(infos)-1].Path
		infos = nil
		b.Run(fmt.Sprintf("%dof%d", size.closure, size.paths), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				closure, err := s.Closure(b.Context(), []nix.StorePath{top})
				if err != nil || len(closure) != size.closure {
					b.Fatalf("%d paths, %v", len(closure), err)
				}
			}
		})
		b.Run(fmt.Sprintf("open%dof%d", size.closure, size.paths), func(b *testing.B) {
			for b.Loop() {
				s, err := localstore.Open(b.Context(), localstore.Under(root))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := s.Closure(b.Context(), []nix.StorePath{top}); err != nil {
					b.Fatal(err)
				}
				s.Close()
			}
		})
	}
}

// BenchmarkPathInfos asks for all of a database.
func BenchmarkPathInfos(b *testing.B) {
	s := openStore(b, localstore.Under(tempDir(b)))
	infos := madeUp(5000, 5000, 9)
	if err := localstore.Register(b.Context(), s, infos); err != nil {
		b.Fatal(err)
	}
	var paths []nix.StorePath
	for _, info := range infos {
		paths = append(paths, info.Path)
	}
	b.Run("PathInfos", func(b *testing.B) {
		for b.Loop() {
			if got, err := s.PathInfos(b.Context(), paths); err != nil || len(got) != len(paths) {
				b.Fatal(len(got), err)
			}
		}
	})
	b.Run("ValidPaths", func(b *testing.B) {
		for b.Loop() {
			if got, err := s.ValidPaths(b.Context(), paths); err != nil || len(got) != len(paths) {
				b.Fatal(len(got), err)
			}
		}
	})
}

// BenchmarkImport takes closures into fresh stores.
func BenchmarkImport(b *testing.B) {
	tiny := nixtest.Closure{}
	for i := range 5000 {
		var refs []nix.StorePath
		for _, back := range []int{1, 7, 100} {
			if i >= back {
				refs = append(refs, tiny[i-back].Info.Path)
			}
		}
		tiny = append(tiny, nixtest.Source(fmt.Sprint("tiny-", i), nixtest.Node{Content: fmt.Sprint(i)}, refs...))
	}
	packages := nixtest.Closure{}
	for i := range 150 {
		files := make(map[string]nixtest.Node)
		for j := range 40 {
			files[fmt.Sprint("file-", j)] = nixtest.Node{Content: strings.Repeat(fmt.Sprint(i, j), 3000)}
		}
		packages = append(packages, nixtest.Source(fmt.Sprint("package-", i), nixtest.Node{Entries: files}))
	}
	large := nixtest.Closure{nixtest.Source("large", nixtest.Node{Content: strings.Repeat("0123456789abcdef", 16<<20)})}
	for _, c := range []struct {
		name string
		nixtest.Closure
	}{{"5000 tiny", tiny}, {"150 packages", packages}, {"256 MiB", large}} {
		b.Run(c.name, func(b *testing.B) {
			var bytesIn int64
			for _, o := range c.Closure {
				bytesIn += o.Info.NARSize
			}
			b.SetBytes(bytesIn)
			for b.Loop() {
				b.StopTimer()
				s := openStore(b, localstore.Under(tempDir(b)))
				b.StartTimer()
				im := s.NewImport(localstore.ImportOptions{})
				if err := im.Expect(b.Context(), c.Paths()); err != nil {
					b.Fatal(err)
				}
				for _, o := range c.Closure {
					err := im.Add(b.Context(), o.Info, bytes.NewReader(o.NAR), func(err error) {
						if err != nil {
							b.Error(err)
						}
					})
					if err != nil {
						b.Fatal(err)
					}
				}
				if err := im.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

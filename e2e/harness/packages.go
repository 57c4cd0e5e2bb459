package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
)

// packageTrees are where the files of made-up packages are taken from.
var packageTrees = []string{"/usr/lib", "/usr/share", "/usr/local/go", "/usr/include"}

// maxPackageFile leaves out the few huge files of a machine, which would make
// packages of equal size impossible.
const maxPackageFile = 4 << 20

// Packages puts n made-up packages of about size bytes altogether into the
// store, as a system profile holds them: their files are cut out of this
// machine's own trees, neighbours staying together; a few packages are large
// and most are small; each refers to a few that come before it, and the last,
// the only root, to all that nothing else refers to. The files depend on the
// machine. The result is kept in [CacheDir].
func Packages(ctx context.Context, s *Store, n int, size int64) (*Closure, error) {
	c, err := cached(fmt.Sprintf("packages-%d-%d", n, size), func(dir string) ([]Object, error) {
		return makePackages(ctx, dir, n, size)
	})
	if err != nil {
		return nil, err
	}
	return c.Closure, c.addTo(ctx, s)
}

func makePackages(ctx context.Context, dir string, n int, size int64) ([]Object, error) {
	files, err := listFiles()
	if err != nil {
		return nil, err
	}
	supply := &fileSupply{files: files}
	objects := make([]Object, n)
	for i, share := range packageSizes(n, size) {
		o := &objects[i]
		o.Path = storePath(fmt.Sprintf("packages %d %d", n, size), fmt.Sprintf("package-%d-1.0", i))
		o.Refs = packageRefs(objects, i)
		tree := filepath.Join(dir, "contents", filepath.Base(o.Path))
		if err := errors.Join(supply.fill(tree, share), writeRefs(tree, o.Refs)); err != nil {
			return nil, err
		}
	}
	return objects, hashAll(ctx, dir, objects)
}

// packageSizes divides size among n packages with the skew that real closures
// have: a logarithmic normal distribution, always the same one.
func packageSizes(n int, size int64) []int64 {
	random := rand.New(rand.NewPCG(1, uint64(n)))
	weights := make([]float64, n)
	var sum float64
	for i := range weights {
		weights[i] = math.Exp(random.NormFloat64())
		sum += weights[i]
	}
	sizes := make([]int64, n)
	for i, w := range weights {
		sizes[i] = int64(w / sum * float64(size))
	}
	return sizes
}

// packageRefs returns the references of the package i: to i/2, i/3 and i/5, or
// for the last to every package that has no referrer yet.
func packageRefs(objects []Object, i int) []string {
	var refs []string
	if i == len(objects)-1 {
		refs = newClosure(objects[:i]).Roots
	} else {
		for _, k := range []int{2, 3, 5} {
			if i > 0 {
				refs = append(refs, objects[i/k].Path)
			}
		}
	}
	refs = slices.Clone(refs)
	slices.Sort(refs)
	return slices.Compact(refs)
}

// listFiles returns all readable regular files of the trees, in order.
func listFiles() ([]string, error) {
	var files []string
	for _, tree := range packageTrees {
		err := filepath.WalkDir(tree, func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
				return nil
			}
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			if info, err := e.Info(); err == nil && info.Size() > 0 && info.Size() <= maxPackageFile {
				files = append(files, path)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no files in %v", packageTrees)
	}
	return files, nil
}

// A fileSupply hands out files one after another, and all over again when they
// are used up.
type fileSupply struct {
	files []string
	next  int
}

// fill copies files into tree, with their directories, until they have size.
func (s *fileSupply) fill(tree string, size int64) error {
	for size > 0 {
		file := s.files[s.next%len(s.files)]
		s.next++
		n, err := copyFile(filepath.Join(tree, file), file)
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		size -= n
	}
	return nil
}

func copyFile(to, from string) (int64, error) {
	in, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return 0, err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return 0, err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, info.Mode().Perm()|0o600)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(out, in)
	return n, errors.Join(err, out.Close())
}

// newNoise returns an endless stream of bytes that look random and are the
// same for the same seed.
func newNoise(seed uint64) io.Reader {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return rand.NewChaCha8(key)
}

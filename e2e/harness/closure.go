package harness

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// A Closure is a set of store paths that holds all references of its members.
type Closure struct {
	Roots []string // what nothing else in the closure refers to
	Paths []Object // references before referrers
}

// An Object is a valid path as Nix's database describes it.
type Object struct {
	Path    string
	NarHash string // SHA-256 in hexadecimal
	NarSize int64
	Refs    []string
}

// NarSize returns the sum over all paths.
func (c *Closure) NarSize() int64 {
	var sum int64
	for _, o := range c.Paths {
		sum += o.NarSize
	}
	return sum
}

// Prefix returns the closure of the first n paths.
func (c *Closure) Prefix(n int) *Closure { return newClosure(c.Paths[:n]) }

// newClosure finds the roots of objects that are in order already.
func newClosure(objects []Object) *Closure {
	referred := make(map[string]bool)
	for _, o := range objects {
		for _, r := range o.Refs {
			if r != o.Path {
				referred[r] = true
			}
		}
	}
	c := &Closure{Paths: objects}
	for _, o := range objects {
		if !referred[o.Path] {
			c.Roots = append(c.Roots, o.Path)
		}
	}
	return c
}

// register enters objects into the database, whose files are in place.
func (s *Store) register(ctx context.Context, objects []Object) error {
	_, err := s.Nix(ctx, bytes.NewReader(marshal(objects)), "nix-store", "--load-db")
	return err
}

// marshal writes objects as nix-store --load-db reads them.
func marshal(objects []Object) []byte {
	var b bytes.Buffer
	for _, o := range objects {
		fmt.Fprintf(&b, "%s\n%s\n%d\n\n%d\n", o.Path, o.NarHash, o.NarSize, len(o.Refs))
		for _, r := range o.Refs {
			fmt.Fprintln(&b, r)
		}
	}
	return b.Bytes()
}

// alphabet has the characters of a store path's hash part.
const alphabet = "0123456789abcdfghijklmnpqrsvwxyz"

// storePath makes up the path of an object as if it had been built from seed.
func storePath(seed, name string) string {
	digest := sha256.Sum256([]byte(seed + "\x00" + name))
	part := make([]byte, 32)
	for i := range part {
		part[i] = alphabet[digest[i]%32]
	}
	return StoreDir + "/" + string(part) + "-" + name
}

// TinyClosure puts n paths of one small file each into the store. Path i
// refers to i-1, i/2, i/3 … i/10, so that the last is the only root and the
// longest chain has n paths. The same n gives the same paths.
func TinyClosure(ctx context.Context, s *Store, n int) (*Closure, error) {
	return tinyClosure(ctx, s, n, "tiny", tinyRefs)
}

// TinyLevels is TinyClosure but for the references: the last path refers to all of the
// highest of so many levels, and those of a level to ten of the next lower one.
func TinyLevels(ctx context.Context, s *Store, n, levels int) (*Closure, error) {
	size := (n - 1) / levels
	return tinyClosure(ctx, s, n, fmt.Sprintf("level-%d", levels), func(i int) []int {
		below := min(i/size, levels) - 1
		var refs []int
		for k := range size {
			if below >= 0 && (i == n-1 || (i+k)%(size/10) == 0) {
				refs = append(refs, below*size+k)
			}
		}
		return refs
	})
}

func tinyClosure(ctx context.Context, s *Store, n int, seed string, refs func(i int) []int) (*Closure, error) {
	objects := make([]Object, n)
	for i := range objects {
		data := tinyObject(objects, i, seed, refs(i))
		file := s.Physical(objects[i].Path)
		if err := errors.Join(os.WriteFile(file, data, 0o444), canonicalTime(file)); err != nil {
			return nil, err
		}
	}
	return newClosure(objects), s.register(ctx, objects)
}

// tinyObject fills in the object i and returns the contents of its file, which
// are what Nix scans for: the hash parts of its references.
func tinyObject(objects []Object, i int, seed string, refs []int) []byte {
	o := &objects[i]
	o.Path = storePath(fmt.Sprintf("%s %d", seed, len(objects)), fmt.Sprintf("tiny-%d", i))
	data := fmt.Appendf(nil, "%d of %d\n", i, len(objects))
	for _, j := range refs {
		ref := objects[j].Path
		o.Refs = append(o.Refs, ref)
		data = append(data, ref[len(StoreDir)+1:len(StoreDir)+33]+"\n"...)
	}
	o.NarHash, o.NarSize = fileNar(data)
	return data
}

func tinyRefs(i int) []int {
	var refs []int
	if i > 0 {
		refs = append(refs, i-1)
	}
	for k := 2; k <= 10 && i > 1; k++ {
		refs = append(refs, i/k)
	}
	slices.Sort(refs)
	return slices.Compact(refs)
}

// BigFile puts one path into the store: a file of size bytes that no
// compression makes smaller.
func BigFile(ctx context.Context, s *Store, size int64) (*Closure, error) {
	o := Object{Path: storePath("big", fmt.Sprintf("big-%d", size))}
	file := s.Physical(o.Path)
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
	if err != nil {
		return nil, err
	}
	_, err = io.CopyN(f, newNoise(uint64(size)), size)
	if err := errors.Join(err, f.Close(), canonicalTime(file)); err != nil {
		return nil, err
	}
	if err := hashObject(ctx, &o, file); err != nil {
		return nil, err
	}
	return newClosure([]Object{o}), s.register(ctx, []Object{o})
}

// fileNar returns hash and size of the NAR of a regular file. Nix checks it in
// every Verify.
func fileNar(data []byte) (string, int64) {
	h := &countingHash{Hash: sha256.New()}
	token := func(s []byte) {
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(s))))
		h.Write(s)
		h.Write(make([]byte, (8-len(s)%8)%8))
	}
	for _, s := range []string{"nix-archive-1", "(", "type", "regular", "contents"} {
		token([]byte(s))
	}
	token(data)
	token([]byte(")"))
	return h.hex(), h.n
}

// A countingHash also knows how much it has hashed.
type countingHash struct {
	hash.Hash
	n int64
}

func (h *countingHash) Write(p []byte) (int, error) {
	h.n += int64(len(p))
	return h.Hash.Write(p)
}

func (h *countingHash) hex() string { return hex.EncodeToString(h.Sum(nil)) }

// hashObject fills in hash and size with the NAR that Nix makes of a tree.
func hashObject(ctx context.Context, o *Object, tree string) error {
	h := &countingHash{Hash: sha256.New()}
	cmd := exec.CommandContext(ctx, "nix-store", "--dump", tree)
	cmd.Stdout = h
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("nix-store --dump %s: %w", tree, err)
	}
	o.NarHash, o.NarSize = h.hex(), h.n
	return nil
}

// canonicalTime sets the modification time that everything in a store has.
func canonicalTime(path string) error {
	return os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0))
}

// canonicalize gives a tree the metadata that everything in a store has. What
// a store cannot hold (devices, sockets) is removed.
func canonicalize(root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch {
		case e.IsDir():
			dirs = append(dirs, path)
			return os.Chmod(path, 0o755)
		case e.Type().IsRegular():
			return canonicalFile(path, e)
		case e.Type()&fs.ModeSymlink == 0:
			return os.Remove(path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, d := range slices.Backward(dirs) {
		if err := errors.Join(os.Chmod(d, 0o555), canonicalTime(d)); err != nil {
			return err
		}
	}
	return nil
}

func canonicalFile(path string, e fs.DirEntry) error {
	info, err := e.Info()
	if err != nil {
		return err
	}
	mode := fs.FileMode(0o444)
	if info.Mode()&0o100 != 0 {
		mode = 0o555
	}
	return errors.Join(os.Chmod(path, mode), canonicalTime(path))
}

// A cachedClosure is a closure that was made once and is kept in a directory:
// contents/ has the trees, closure.json says what they are.
type cachedClosure struct {
	*Closure
	dir string
}

// addTo puts the closure into a store, by hard links where the store is on the
// cache's file system.
func (c *cachedClosure) addTo(ctx context.Context, s *Store) error {
	contents, target := filepath.Join(c.dir, "contents"), s.Physical(StoreDir)
	how := "-a"
	if same, err := sameDevice(contents, target); err != nil {
		return err
	} else if same {
		how = "-al"
	}
	for group := range slices.Chunk(c.Paths, 500) {
		args := []string{how, "--target-directory=" + target}
		for _, o := range group {
			args = append(args, filepath.Join(contents, filepath.Base(o.Path)))
		}
		if out, err := exec.CommandContext(ctx, "cp", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("cp %s: %w: %s", how, err, bytes.TrimSpace(out))
		}
	}
	return s.register(ctx, c.Paths)
}

func sameDevice(a, b string) (bool, error) {
	var sa, sb syscall.Stat_t
	if err := errors.Join(syscall.Stat(a, &sa), syscall.Stat(b, &sb)); err != nil {
		return false, err
	}
	return sa.Dev == sb.Dev, nil
}

// hashAll hashes the trees of a directory that is becoming a cached closure.
func hashAll(ctx context.Context, dir string, objects []Object) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2)
	for i := range objects {
		o := &objects[i]
		tree := filepath.Join(dir, "contents", filepath.Base(o.Path))
		group.Go(func() error {
			if err := canonicalize(tree); err != nil {
				return err
			}
			return hashObject(ctx, o, tree)
		})
	}
	return group.Wait()
}

// Package nixtest helps tests: made-up closures with real contents, a store in
// memory, a conformance suite for stores, and streams that are slow or fail.
package nixtest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// Dir is the store directory of all that this package makes up.
const Dir = nix.DefaultStoreDir

// An Object is a store path with its contents.
type Object struct {
	Info *nix.PathInfo
	NAR  []byte
}

// A Node is a file, or a directory where Entries is not nil, or a link where
// Target is not empty.
type Node struct {
	Content    string
	Executable bool
	Target     string
	Entries    map[string]Node
}

// NAR returns the archive of n.
func (n Node) NAR() []byte {
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	w.String("nix-archive-1")
	n.write(w)
	if err := w.Flush(); err != nil {
		panic(err) // a bytes.Buffer has none
	}
	return b.Bytes()
}

func (n Node) write(w *wire.Writer) {
	put := func(words ...string) {
		for _, word := range words {
			w.String(word)
		}
	}
	put("(", "type")
	switch {
	case n.Entries != nil:
		put("directory")
		for _, name := range slices.Sorted(maps.Keys(n.Entries)) {
			put("entry", "(", "name", name, "node")
			n.Entries[name].write(w)
			put(")")
		}
	case n.Target != "":
		put("symlink", "target", n.Target)
	default:
		put("regular")
		if n.Executable {
			put("executable", "")
		}
		put("contents", n.Content)
	}
	put(")")
}

// newObject describes an archive. Times are whole seconds and not now, so that
// what is compared later is the same.
func newObject(p nix.StorePath, archive []byte, ca string, refs []nix.StorePath) Object {
	info := &nix.PathInfo{
		Path:       p,
		NARHash:    nix.SHA256Hash(sha256.Sum256(archive)),
		NARSize:    int64(len(archive)),
		References: slices.Clone(refs),
		CA:         ca,
		Registered: time.Unix(1_700_000_000, 0),
	}
	info.SortReferences()
	return Object{info, archive}
}

// Source makes a content-addressed object, as nix-store --add does where there are
// no references. The tree should contain the references that it is said to have.
func Source(name string, tree Node, refs ...nix.StorePath) Object {
	archive := tree.NAR()
	ca := nix.ContentAddress{Method: nix.Recursive, Hash: nix.SHA256Hash(sha256.Sum256(archive))}
	return newObject(contentAddressed(name, ca, refs, false), archive, ca.String(), refs)
}

// Text makes a text file with its content address over the text, such as a .drv.
func Text(name, text string, refs ...nix.StorePath) Object {
	ca := nix.ContentAddress{Method: nix.Text, Hash: nix.SHA256Hash(sha256.Sum256([]byte(text)))}
	return newObject(contentAddressed(name, ca, refs, false), Node{Content: text}.NAR(), ca.String(), refs)
}

// Flat makes a file with its content address over the file's bytes.
func Flat(name, content string) Object {
	ca := nix.ContentAddress{Method: nix.Flat, Hash: nix.SHA256Hash(sha256.Sum256([]byte(content)))}
	return newObject(contentAddressed(name, ca, nil, false), Node{Content: content}.NAR(), ca.String(), nil)
}

// GitTree returns a directory as "nix store add --mode git --hash-algo sha1" of Nix 2.34
// makes it. We cannot verify its content address.
func GitTree() Object {
	ca := must(nix.ParseContentAddress("fixed:git:sha1:v7mq0nlnh88287lwh73hs14xwpfafmfz"))
	tree := Node{Entries: map[string]Node{"f": {Content: "hi\n"}}}
	return newObject(contentAddressed("in", ca, nil, false), tree.NAR(), ca.String(), nil)
}

// SelfSource makes a content-addressed object that refers to itself, as Nix makes it since
// 2.17: makeTree gets the path to put into the tree.
func SelfSource(name string, makeTree func(self string) Node, refs ...nix.StorePath) Object {
	return selfSource(0, name, makeTree, refs)
}

// OldSelfSource is SelfSource as Nix made it before 2.17. Older versions refuse the newer
// form, and newer ones the older.
func OldSelfSource(name string, makeTree func(self string) Node, refs ...nix.StorePath) Object {
	return selfSource(1, name, makeTree, refs)
}

func selfSource(form int, name string, makeTree func(self string) Node, refs []nix.StorePath) Object {
	hashPart := string(make([]byte, 32))
	draft := makeTree(string(Dir) + "/" + hashPart + "-" + name).NAR()
	ca := nix.ContentAddress{Method: nix.Recursive, Hash: hashesModulo(draft, hashPart)[form]}
	self := contentAddressed(name, ca, refs, true)
	archive := makeTree(self.String()).NAR()
	return newObject(self, archive, ca.String(), append(slices.Clone(refs), self))
}

// Output makes an input-addressed object. The hash part is spread from seed; the
// tree is made with the path, so that it can refer to itself.
func Output(seed, name string, makeTree func(self string) Node, refs ...nix.StorePath) Object {
	sum := sha256.Sum256([]byte(seed))
	self := must(Dir.ParseBase(nix.EncodeNix32(sum[:20]) + "-" + name))
	archive := makeTree(self.String()).NAR()
	if bytes.Contains(archive, []byte(self.HashPart())) {
		refs = append(slices.Clone(refs), self)
	}
	return newObject(self, archive, "", refs)
}

// Derivation makes a fixed-output derivation, in a form that Nix accepts, and the
// output that it promises.
func Derivation(name string, tree Node) (drv, out Object) {
	out = Source(name, tree)
	digest, p := out.Info.NARHash.Hex(), out.Info.Path.String()
	drv = Text(name+".drv", fmt.Sprintf(`Derive([("out",%q,"r:sha256",%q)],[],[],"x86_64-linux","/bin/false",[],`+
		`[("builder","/bin/false"),("name",%q),("out",%q),("outputHash",%q),("outputHashAlgo","sha256"),("outputHashMode","recursive"),("system","x86_64-linux")])`,
		p, digest, name, p, digest))
	out.Info.Deriver = drv.Info.Path
	return drv, out
}

func contentAddressed(name string, ca nix.ContentAddress, refs []nix.StorePath, self bool) nix.StorePath {
	info := &nix.PathInfo{References: slices.Clone(refs)}
	info.SortReferences()
	return must(Dir.ContentAddressedPath(name, ca, info.References, self))
}

// hashesModulo hashes an archive with its own hash part blanked out, as Nix does it since
// 2.17, and as it did before: with the places where that was behind the archive.
func hashesModulo(archive []byte, hashPart string) []nix.Hash {
	blank := string(make([]byte, len(hashPart)))
	h := sha256.New()
	h.Write([]byte(strings.ReplaceAll(string(archive), hashPart, blank)))
	today := nix.SHA256Hash([sha256.Size]byte(h.Sum(nil)))
	rest, offset := archive, 0
	for {
		i := bytes.Index(rest, []byte(hashPart))
		if i < 0 {
			return []nix.Hash{today, nix.SHA256Hash([sha256.Size]byte(h.Sum(nil)))}
		}
		fmt.Fprintf(h, "|%d", offset+i)
		offset += i + len(hashPart)
		rest = rest[i+len(hashPart):]
	}
}

// Signature returns what has the form of a signature by a key.
func Signature(key string) string {
	return key + ":" + base64.StdEncoding.EncodeToString(make([]byte, ed25519.SignatureSize))
}

// must is for what cannot fail unless a test is written wrong.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

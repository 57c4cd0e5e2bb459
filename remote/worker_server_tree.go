package remote

import (
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// addToStore takes contents whose path follows from them. They wait in a temporary
// file, since nothing is known of them before their end.
func (d *daemonServer) addToStore(ctx context.Context) error {
	if !d.since(25) {
		return &wire.FormatError{Msg: "a client older than Nix 2.4 cannot add files here"}
	}
	name := d.in.String(wire.MaxPath)
	method := d.in.String(wire.MaxField)
	refs := d.in.Paths(d.dir, wire.MaxReferences)
	repair := d.in.Bool()
	if err := d.request("add files"); err != nil {
		return err
	}
	frames := wire.NewFrameReader(d.in)
	info, err := d.addTree(ctx, frames, name, method, refs, repair)
	if _, drainErr := frames.Drain(); drainErr != nil {
		return drainErr
	}
	if err != nil {
		err = fmt.Errorf("add %q: %w", name, err)
	}
	return d.replyToGroup(err, func(w *wire.Writer) {
		w.Path(info.Path)
		writeKnownInfo(w, info)
	})
}

func (d *daemonServer) addTree(ctx context.Context, contents io.Reader, name, method string, refs []nix.StorePath, repair bool) (*nix.PathInfo, error) {
	if err := d.mayWrite("add files"); err != nil {
		return nil, err
	}
	spool, err := newSpool()
	if err != nil {
		return nil, err
	}
	defer spool.Close()
	info, err := d.describe(spool, contents, name, method, refs)
	if err != nil {
		return nil, err
	}
	if err := d.mayAdd(ctx, info, repair, false); err != nil {
		return nil, err
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	add := newServerAdd(info.Path, false)
	if err := d.adds.push(add); err != nil {
		return nil, err
	}
	return info, d.take(ctx, info, spool, add)
}

// describe writes contents to the spool as a NAR and finds out what path they are.
func (d *daemonServer) describe(spool *spool, contents io.Reader, name, method string, refs []nix.StorePath) (*nix.PathInfo, error) {
	text, algorithm, _ := cutLast(method)
	ca := nix.ContentAddress{Method: nix.IngestMethod(text)}
	sum := newDigest(nix.HashAlgorithm(algorithm))
	if sum == nil {
		return nil, fmt.Errorf("content address method %q is not known here", method)
	}
	narHash := nar.NewHasher(sha256.New())
	out := io.MultiWriter(spool, narHash)
	var size int64
	var err error
	switch ca.Method {
	case nix.Recursive:
		size, err = nar.Copy(io.MultiWriter(out, sum), contents)
	case nix.Flat, nix.Text:
		size, err = wrapFile(out, io.TeeReader(contents, sum))
	default:
		err = fmt.Errorf("content address method %q is not known here", method)
	}
	digest := narHash.Sum()
	if err != nil {
		return nil, err
	}
	if ca.Hash, err = nix.NewHash(nix.HashAlgorithm(algorithm), sum.Sum(nil)); err != nil {
		return nil, err
	}
	info := &nix.PathInfo{
		NARHash:    nix.SHA256Hash([sha256.Size]byte(digest)),
		NARSize:    size,
		References: refs,
		CA:         ca.String(),
	}
	info.SortReferences()
	info.Path, err = d.dir.ContentAddressedPath(name, ca, info.References, false)
	return info, err
}

// cutLast splits fixed:r:sha256 before its last part.
func cutLast(method string) (before, after string, ok bool) {
	i := strings.LastIndexByte(method, ':')
	if i < 0 {
		return "", "", false
	}
	return method[:i], method[i+1:], true
}

// newDigest returns nil for an algorithm that is not known.
func newDigest(algorithm nix.HashAlgorithm) hash.Hash {
	switch algorithm {
	case nix.MD5:
		return md5.New()
	case nix.SHA1:
		return sha1.New()
	case nix.SHA256:
		return sha256.New()
	case nix.SHA512:
		return sha512.New()
	}
	return nil
}

// wrapFile writes the NAR of a plain file, whose size is not known before its end.
func wrapFile(w io.Writer, contents io.Reader) (int64, error) {
	spool, err := newSpool()
	if err != nil {
		return 0, err
	}
	defer spool.Close()
	size, err := io.Copy(spool, contents)
	if err == nil {
		_, err = spool.Seek(0, io.SeekStart)
	}
	if err != nil {
		return 0, err
	}
	counted := &countingWriter{w: w}
	archive := nar.NewWriter(counted)
	if err := archive.Regular("", false, size); err != nil {
		return 0, err
	}
	if _, err := io.Copy(archive, spool); err != nil {
		return 0, err
	}
	err = archive.Close()
	return counted.n, err
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

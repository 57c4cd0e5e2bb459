package substitute

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A narReader undoes the compression of a NAR and holds the file against its narinfo.
type narReader struct {
	info  *NARInfo
	raw   *rawReader
	plain io.ReadCloser
	left  int64 // bytes of the NAR
}

// maxTrailer bounds, in bytes, what may follow the compressed NAR in its file where
// the file's size is not known.
const maxTrailer = 64 << 10

func newNARReader(n *NARInfo, raw io.ReadCloser) (*narReader, error) {
	if n.Compression == None && (n.FileSize > 0 && n.FileSize != n.NARSize || n.fileHashKnown() && n.FileHash != n.NARHash) {
		return nil, fmt.Errorf("it is not compressed, but its file is said to differ from the NAR: %w", nix.ErrDamaged)
	}
	r := &narReader{info: n, raw: &rawReader{ReadCloser: raw, most: n.FileSize}, left: n.NARSize}
	if n.fileHashKnown() && n.Compression != None {
		r.raw.hash = sha256.New()
	}
	if !n.Compression.readable() {
		return nil, n.Compression.unknown()
	}
	var err error
	if r.plain, err = n.Compression.NewReader(r.raw); err != nil {
		return nil, r.blame(err)
	}
	return r, nil
}

// fileHashKnown reports whether the file has a hash as Nix writes it; it is no loss if
// another one is not checked, since the NAR's is.
func (n *NARInfo) fileHashKnown() bool { return n.FileHash.Algorithm() == nix.SHA256 }

// Read implements io.Reader.
func (r *narReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.plain.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	switch {
	case r.left == 0:
		if err := r.finish(); err != nil {
			r.left = 1 // so that nobody takes this for the end
			return 0, err
		}
		return n, nil
	case err == io.EOF:
		return n, r.blame(fmt.Errorf("the NAR ends %d bytes early", r.left))
	case err != nil:
		return n, r.blame(err)
	}
	return n, nil
}

// blame tells a file that could not be read from one with wrong contents.
func (r *narReader) blame(err error) error {
	if r.raw.err != nil {
		return r.raw.err
	}
	return fmt.Errorf("%w: %w", err, nix.ErrDamaged)
}

// finish checks that the file is over with the NAR, and is the one that was promised.
func (r *narReader) finish() error {
	switch _, err := io.ReadFull(r.plain, make([]byte, 1)); {
	case err == nil:
		return r.blame(&nix.SizeMismatchError{Got: r.info.NARSize + 1, Want: r.info.NARSize})
	case err != io.EOF:
		return r.blame(err)
	}
	if r.raw.hash == nil {
		return nil
	}
	if r.raw.most == 0 {
		r.raw.most = r.raw.size + maxTrailer
	}
	if _, err := io.Copy(io.Discard, r.raw); err != nil { // what no decompressor asks for
		return r.blame(err)
	}
	if r.info.FileSize > 0 && r.raw.size != r.info.FileSize {
		return r.blame(fmt.Errorf("the file has %d bytes, expected %d", r.raw.size, r.info.FileSize))
	}
	if got := nix.SHA256Hash([sha256.Size]byte(r.raw.hash.Sum(nil))); got != r.info.FileHash {
		return r.blame(fmt.Errorf("the file's hash is %s, expected %s", got, r.info.FileHash))
	}
	return nil
}

// Close implements io.Closer.
func (r *narReader) Close() error { return errors.Join(r.plain.Close(), r.raw.Close()) }

// A rawReader counts and hashes a file, and keeps the error of reading it.
type rawReader struct {
	io.ReadCloser
	hash hash.Hash // nil: not wanted
	size int64
	most int64 // bytes; 0: not known
	err  error
}

func (r *rawReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.size += int64(n)
	if r.hash != nil {
		r.hash.Write(p[:n])
	}
	if r.most > 0 && r.size > r.most {
		return n, fmt.Errorf("the file has more than %d bytes", r.most)
	}
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

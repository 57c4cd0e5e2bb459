package substitute

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
)

// A body is a NAR on its way to a client.
type body struct {
	store  ServedStore
	known  *verdicts
	info   *nix.PathInfo
	part   byteRange // of the NAR
	status int
	etag   string
}

// header writes the header of the NAR as it is.
func (b *body) header(res *response) {
	h := res.Header()
	h.Set("ETag", b.etag)
	h.Set("Accept-Ranges", "bytes")
	h.Set("Content-Length", strconv.FormatInt(b.part.end-b.part.first, 10))
	if b.status == http.StatusPartialContent {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", b.part.first, b.part.end-1, b.info.NARSize))
	}
	res.WriteHeader(b.status)
}

// identity sends the NAR as it is. apart hashes it on a goroutine of its own.
func (b *body) identity(ctx context.Context, res *response, apart bool) error {
	w := &window{w: res, part: b.part, start: func() { b.header(res) }}
	err := b.write(ctx, w, apart)
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// encoded sends all of it, compressed.
func (b *body) encoded(ctx context.Context, res *response, e *zstd.Encoder) error {
	w := &window{w: res, part: byteRange{0, 1 << 62}, start: func() {
		h := res.Header()
		h.Set("ETag", b.etag[:len(b.etag)-1]+`-zstd"`)
		h.Set("Content-Encoding", "zstd")
		res.WriteHeader(http.StatusOK)
	}}
	e.Reset(w)
	if err := b.write(ctx, e, true); err != nil {
		return err
	}
	return e.Close()
}

// write writes the NAR to w, but its last byte only if all of it is what the store
// promises: so that what is damaged never looks complete.
func (b *body) write(ctx context.Context, w io.Writer, apart bool) error {
	c := &checker{w: w, hash: io.Discard, info: b.info, left: b.info.NARSize}
	var err error
	if mark, ok := b.known.get(b.info); ok {
		err = b.compared(ctx, c, mark)
	} else {
		err = b.hashed(ctx, c, apart)
	}
	if err == nil {
		_, err = w.Write(c.last[:])
	}
	if err != nil {
		return fmt.Errorf("%s: %w", b.info.Path, err)
	}
	return nil
}

// hashed passes on the NAR and hashes it, apart on a goroutine of its own.
func (b *body) hashed(ctx context.Context, c *checker, apart bool) error {
	begun := time.Now()
	digest := nar.NewHasherIf(apart, sha256.New())
	c.hash = digest
	var mark nar.Mark
	var err error
	marking, marks := b.store.(MarkingStore)
	if marks {
		mark, err = marking.WriteMarkedNAR(ctx, c, b.info.Path)
	} else {
		err = b.store.WriteNAR(ctx, c, b.info.Path)
	}
	hash := nix.SHA256Hash([sha256.Size]byte(digest.Sum()))
	if err == nil {
		err = b.info.CheckNAR(hash, b.info.NARSize-c.left)
	}
	if err == nil && marks {
		b.known.put(b.info, mark, begun)
	}
	return err
}

// compared passes on a NAR that was right when it had that mark. Where it has another
// now, it may still be right: the client that asks for the rest gets it when that is
// known.
func (b *body) compared(ctx context.Context, c *checker, known nar.Mark) error {
	mark, err := b.store.(MarkingStore).WriteMarkedNAR(ctx, c, b.info.Path)
	if err == nil && (mark != known || c.left > 0) {
		err = fmt.Errorf("%w: it has changed since it was hashed", nix.ErrDamaged)
	}
	if errors.Is(err, nix.ErrDamaged) {
		b.known.forget(b.info)
	}
	return err
}

// A checker hashes what is written to it and keeps the last byte back.
type checker struct {
	w    io.Writer
	info *nix.PathInfo
	hash io.Writer
	left int64 // bytes that are still to come
	last [1]byte
}

func (c *checker) Write(p []byte) (int, error) {
	if int64(len(p)) > c.left {
		return 0, fmt.Errorf("%w: NAR has more than the %d bytes expected", nix.ErrDamaged, c.info.NARSize)
	}
	c.hash.Write(p) // a hash never fails
	c.left -= int64(len(p))
	n := len(p)
	if c.left == 0 && n > 0 {
		c.last[0] = p[n-1]
		n--
	}
	if written, err := c.w.Write(p[:n]); err != nil {
		return written, err
	}
	return len(p), nil
}

// errEnough ends the making of a NAR of which the rest is not wanted.
var errEnough = errors.New("the rest is not wanted")

// A window passes on a part of what is written to it. It calls start before the
// first byte, so that an error until then can still be told.
type window struct {
	w     io.Writer
	part  byteRange
	pos   int64
	start func()
}

func (w *window) Write(p []byte) (int, error) {
	first := max(0, w.part.first-w.pos)
	end := min(int64(len(p)), w.part.end-w.pos)
	w.pos += int64(len(p))
	if first < end {
		if w.start != nil {
			w.start()
			w.start = nil
		}
		if _, err := w.w.Write(p[first:end]); err != nil {
			return 0, err
		}
	}
	if w.pos >= w.part.end {
		return len(p), errEnough
	}
	return len(p), nil
}

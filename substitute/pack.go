package substitute

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/progress"
)

// A packed path is ready to be put into a cache.
type packed struct {
	nar     *spool // compressed
	listing *spool
}

func (p *packed) close() error { return errors.Join(p.nar.close(), p.listing.close()) }

// A packer compresses one path after another. It keeps its zstd encoder, whose memory
// would take longer to make than most paths take to compress.
type packer struct {
	files       WritableFiles
	compression Compression
	level       int
	apart       bool          // hash on a goroutine of its own
	zstd        *zstd.Encoder // nil until it is needed
}

// pack reads a path's contents and compares them with its info.
func (k *packer) pack(ctx context.Context, source NARSource, info *nix.PathInfo, meter *progress.Meter) (_ *packed, err error) {
	p := new(packed)
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.nar, err = newSpool(k.files, "nar"); err != nil {
		return nil, err
	}
	if p.listing, err = newSpool(k.files, "."); err != nil {
		return nil, err
	}
	encoder, err := k.encoder(ctx, p.nar)
	if err != nil {
		return nil, err
	}
	err = k.split(ctx, source, info, encoder, p.listing, meter)
	if err = errors.Join(err, encoder.Close()); err != nil {
		return nil, err
	}
	return p, nil
}

// split writes the NAR to the encoder, and what is in it to the listing.
func (k *packer) split(ctx context.Context, source NARSource, info *nix.PathInfo, encoder, listing io.Writer, meter *progress.Meter) error {
	r, w := io.Pipe()
	listed := make(chan error, 1)
	go func() {
		err := WriteListing(listing, r)
		if err == nil {
			_, err = io.Copy(io.Discard, r) // a last write may be empty, and waits as any other
		}
		r.CloseWithError(err)
		listed <- err
	}()
	hash := nar.NewHasherIf(k.apart, sha256.New())
	out := &counter{meter: meter}
	err := source.WriteNAR(ctx, io.MultiWriter(out, hash, encoder, w), info.Path)
	w.CloseWithError(err)
	sum := nix.SHA256Hash([sha256.Size]byte(hash.Sum()))
	listErr := <-listed
	if err != nil {
		return err
	}
	return errors.Join(info.CheckNAR(sum, out.size), listErr)
}

// A counter counts what passes.
type counter struct {
	meter *progress.Meter
	size  int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.meter.Bytes(len(p))
	c.size += int64(len(p))
	return len(p), nil
}

// encoder compresses to w.
func (k *packer) encoder(ctx context.Context, w io.Writer) (io.WriteCloser, error) {
	switch k.compression {
	case XZ:
		return newXZWriter(ctx, w, k.level)
	case Zstd:
		if k.zstd != nil {
			k.zstd.Reset(w)
			return k.zstd, nil
		}
		var err error
		k.zstd, err = newPushEncoder(w, k.level)
		return k.zstd, err
	}
	return unchanged{w}, nil
}

package substitute

import (
	"bufio"
	"compress/bzip2"
	"compress/gzip"
	"fmt"
	"io"
	"sync"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
	"github.com/pierrec/lz4/v4"
)

// How far back a compressed stream may refer, in bytes: so much memory it takes to
// read it. The strongest levels of each need as much.
const (
	maxZstdWindow   = 128 << 20
	maxXZDictionary = 64 << 20
)

// NewReader returns what r holds compressed. Closing it leaves r open.
func (c Compression) NewReader(r io.Reader) (io.ReadCloser, error) {
	switch c {
	case None:
		return io.NopCloser(r), nil
	case XZ:
		return plainReader(xz.NewReader(r, maxXZDictionary))
	case Zstd:
		return newZstdReader(r)
	case Bzip2:
		return io.NopCloser(bzip2.NewReader(bufio.NewReader(r))), nil
	case Gzip:
		return plainReader(gzip.NewReader(r))
	case Brotli:
		return io.NopCloser(brotli.NewReader(r)), nil
	case LZMA:
		return plainReader(newLZMAReader(r))
	case Lzip:
		return plainReader(newLzipReader(r))
	case LZ4:
		return io.NopCloser(lz4.NewReader(r)), nil
	}
	return nil, c.unknown()
}

// readable reports whether NewReader knows c.
func (c Compression) readable() bool {
	switch c {
	case None, XZ, Zstd, Bzip2, Gzip, Brotli, LZMA, Lzip, LZ4:
		return true
	}
	return false
}

func (c Compression) unknown() error {
	return fmt.Errorf("unsupported compression %.40q", string(c))
}

// plainReader is for a decompressor that need not be closed.
func plainReader(r io.Reader, err error) (io.ReadCloser, error) {
	if err != nil {
		return nil, err
	}
	return io.NopCloser(r), nil
}

// zstdDecoders are kept for the next NAR: to make the memory of one takes longer than
// most NARs take to decompress.
var zstdDecoders sync.Pool

// A zstdReader is a decoder on loan. It decompresses in the goroutine that reads:
// several NARs are read side by side, which keeps the processors busy already.
type zstdReader struct{ decoder *zstd.Decoder } // nil when closed

func newZstdReader(r io.Reader) (io.ReadCloser, error) {
	if d, ok := zstdDecoders.Get().(*zstd.Decoder); ok {
		return &zstdReader{d}, d.Reset(r)
	}
	d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxZstdWindow))
	if err != nil {
		return nil, err
	}
	return &zstdReader{d}, nil
}

func (z *zstdReader) Read(p []byte) (int, error) {
	if z.decoder == nil {
		return 0, zstd.ErrDecoderClosed
	}
	return z.decoder.Read(p)
}

func (z *zstdReader) Close() error {
	d := z.decoder
	if d == nil {
		return nil
	}
	z.decoder = nil
	err := d.Reset(nil) // what it read from is not kept
	zstdDecoders.Put(d)
	return err
}

package delta

import (
	"bufio"
	"encoding/binary"
	"io"

	"github.com/klauspost/compress/zstd"
)

const (
	decodeCache = 4 << 20 // bytes of the base that a decoder keeps
	outSize     = 256 << 10
)

// Decode writes to w the archive of size bytes that a delta makes of the base. It
// never writes more, and less only when it fails. What it has written is not to be
// trusted before its hash has been compared. The delta is read to its last byte;
// if r has no ReadByte, perhaps beyond. A delta that is not well-formed, or is made
// for another size or base, gives a *[FormatError], a base that cannot be read a
// *[BaseError]; errors of r and w are passed on. It takes up to 32 MiB of memory.
func Decode(w io.Writer, src Source, m Mapping, r io.Reader, size int64) error {
	d := &decoder{r: byteReader(r), w: w, base: newBase(src, m, decodeCache), left: max(size, 0)}
	if err := d.header(); err != nil {
		return err
	}
	for {
		n, err := d.uvarint(maxSequences)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		if err := d.block(n); err != nil {
			return err
		}
	}
	if d.left > 0 {
		return malformed("it ends %d bytes before the archive does", d.left)
	}
	return d.flush()
}

// A byteStream is a stream that is read byte by byte where its next length is not
// known.
type byteStream interface {
	io.Reader
	io.ByteReader
}

func byteReader(r io.Reader) byteStream {
	if b, ok := r.(byteStream); ok {
		return b
	}
	return bufio.NewReader(r)
}

type decoder struct {
	r     byteStream
	w     io.Writer
	base  *base
	zstd  *zstd.Decoder
	out   []byte
	left  int64 // bytes that the archive still lacks
	at    int64 // in the base
	empty bool  // the next sequence may consist of a jump alone

	streams [streams][]byte
	packed  []byte
}

func (d *decoder) header() error {
	v, err := d.r.ReadByte()
	if err != nil {
		return early(err)
	}
	if v != version {
		return malformed("version %d, want %d", v, version)
	}
	size, err := readUvarint(d.r)
	if err != nil {
		return err
	}
	if size != uint64(d.base.size) {
		return malformed("it is made for a base of %d bytes, not %d", size, d.base.size)
	}
	return nil
}

// uvarint reads a number of at most limit.
func (d *decoder) uvarint(limit int) (int, error) {
	v, err := readUvarint(d.r)
	if err != nil {
		return 0, err
	}
	if v > uint64(limit) {
		return 0, malformed("%d where at most %d are allowed", v, limit)
	}
	return int(v), nil
}

// readUvarint reads a number as encoding/binary writes it.
func readUvarint(r io.ByteReader) (uint64, error) {
	v := uint64(0)
	for shift := 0; shift < 64; shift += 7 {
		c, err := r.ReadByte()
		if err != nil {
			return 0, early(err)
		}
		if shift == 63 && c > 1 {
			break
		}
		if v |= uint64(c&0x7f) << shift; c < 0x80 {
			return v, nil
		}
	}
	return 0, malformed("a number of more than 64 bits")
}

// block reads a block of n sequences and does what they say.
func (d *decoder) block(n int) error {
	for i := range d.streams {
		if err := d.stream(i); err != nil {
			return err
		}
	}
	s, left := d.streams, d.left
	d.empty = true
	for range n {
		if err := d.sequence(&s); err != nil {
			return err
		}
	}
	if d.left == left {
		return malformed("a block without bytes")
	}
	for _, rest := range s {
		if len(rest) > 0 {
			return malformed("a block has %d bytes more than its sequences use", len(rest))
		}
	}
	return nil
}

// stream reads the i-th stream of a block.
func (d *decoder) stream(i int) error {
	head, err := d.uvarint(limits[i]<<1 | 1)
	if err != nil {
		return err
	}
	size := head >> 1
	if head&1 == 0 {
		d.streams[i], err = readFull(d.r, d.streams[i], size)
		return err
	}
	packed, err := d.uvarint(size)
	if err != nil {
		return err
	}
	if d.packed, err = readFull(d.r, d.packed, packed); err != nil {
		return err
	}
	if d.zstd == nil {
		d.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(maxBytes))
		if err != nil {
			return err
		}
	}
	d.streams[i], err = d.zstd.DecodeAll(d.packed, d.streams[i][:0])
	if err != nil {
		return &FormatError{err}
	}
	if len(d.streams[i]) != size {
		return malformed("a stream has %d bytes, not the %d announced", len(d.streams[i]), size)
	}
	return nil
}

// readFull reads size bytes, into buf if it is large enough. What it allocates
// grows with what has been read.
func readFull(r io.Reader, buf []byte, size int) ([]byte, error) {
	const step = 256 << 10
	buf = buf[:0]
	for len(buf) < size {
		n := min(size-len(buf), max(step, len(buf)))
		if cap(buf)-len(buf) < n {
			buf = append(make([]byte, 0, len(buf)+n), buf...)
		}
		got, err := io.ReadFull(r, buf[len(buf):len(buf)+n])
		buf = buf[:len(buf)+got]
		if err != nil {
			return buf, early(err)
		}
	}
	return buf, nil
}

func (d *decoder) sequence(s *[streams][]byte) error {
	size, err := number(&s[lengths])
	if err != nil {
		return err
	}
	follow, err := number(&s[follows])
	if err != nil {
		return err
	}
	kind := follow & 1
	follow >>= 1
	if size == 0 && follow == 0 && !d.empty {
		return malformed("a sequence without bytes")
	}
	d.empty = kind == isPatch
	if err := d.copy(size); err != nil {
		return err
	}
	if kind == isPatch {
		return d.add(follow, &s[differences])
	}
	if err := d.literal(follow, &s[literals]); err != nil {
		return err
	}
	jump, err := number(&s[jumps])
	if err != nil {
		return err
	}
	return d.jump(int64(jump>>1) ^ -int64(jump&1))
}

// number takes a number from a stream.
func number(s *[]byte) (uint64, error) {
	v, n := binary.Uvarint(*s)
	if n <= 0 {
		return 0, malformed("a stream of numbers ends early, or with one that is too large")
	}
	*s = (*s)[n:]
	return v, nil
}

// copy writes the next n bytes of the base.
func (d *decoder) copy(n uint64) error {
	if n > uint64(d.left) || n > uint64(d.base.size-d.at) {
		return malformed("a copy of %d bytes: %d are left in the base, and %d are wanted", n, d.base.size-d.at, d.left)
	}
	for n > 0 {
		if len(d.out) == outSize {
			if err := d.flush(); err != nil {
				return err
			}
		}
		have := d.base.from(d.at)
		if d.base.err != nil {
			return d.base.err
		}
		have = have[:min(n, uint64(len(have)), uint64(outSize-len(d.out)))]
		d.out = append(d.out, have...)
		d.at += int64(len(have))
		d.left -= int64(len(have))
		n -= uint64(len(have))
	}
	return nil
}

// add writes n bytes of the base, each with a difference added.
func (d *decoder) add(n uint64, diff *[]byte) error {
	if n > uint64(len(*diff)) {
		return malformed("%d differences, and %d bytes left in their stream", n, len(*diff))
	}
	p := (*diff)[:n]
	*diff = (*diff)[n:]
	for len(p) > 0 {
		k := min(len(p), outSize/2)
		if len(d.out)+k > outSize {
			if err := d.flush(); err != nil {
				return err
			}
		}
		if err := d.copy(uint64(k)); err != nil {
			return err
		}
		sum := d.out[len(d.out)-k:]
		for i, c := range p[:k] {
			sum[i] += c
		}
		p = p[k:]
	}
	return nil
}

// literal writes n bytes as they are.
func (d *decoder) literal(n uint64, stream *[]byte) error {
	if n > uint64(len(*stream)) || n > uint64(d.left) {
		return malformed("%d literal bytes: %d are left in their stream, and %d are wanted", n, len(*stream), d.left)
	}
	p := (*stream)[:n]
	*stream = (*stream)[n:]
	d.left -= int64(n)
	for len(p) > 0 {
		if len(d.out) == outSize {
			if err := d.flush(); err != nil {
				return err
			}
		}
		k := min(len(p), outSize-len(d.out))
		d.out = append(d.out, p[:k]...)
		p = p[k:]
	}
	return nil
}

func (d *decoder) jump(by int64) error {
	if by < -d.at || by > d.base.size-d.at {
		return malformed("a jump by %d from %d, in a base of %d bytes", by, d.at, d.base.size)
	}
	d.at += by
	return nil
}

func (d *decoder) flush() error {
	n, err := d.w.Write(d.out)
	if err == nil && n < len(d.out) {
		err = io.ErrShortWrite
	}
	d.out = d.out[:0]
	return err
}

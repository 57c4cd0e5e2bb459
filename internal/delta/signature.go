package delta

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"math"
	"math/bits"

	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
)

// A signature's first byte.
const (
	signatureVersion = 0x81
	sameVersion      = 0x82 // the base is the archive already
)

const (
	minHashed    = 256 // bytes of a base that one hash stands for
	maxHashed    = 64 << 10
	maxHashes    = 1 << 20
	minHashBytes = 5
	maxHashBytes = 7
)

// A Signature tells what a base consists of: the hashes of its blocks. It does not
// change and may be used by many.
type Signature struct {
	layout
	same   bool             // the base is the archive that is wanted, and there are no hashes
	hashes []uint64         // of the blocks, in order
	filter []uint64         // a set of hashes, by their lowest bits
	first  map[uint64]int32 // a block with a hash
}

// A layout is how a base is cut: into blocks of the same size, the last of which
// begins where it ends with the base.
type layout struct {
	size      int64 // of the base
	block     int64
	hashBytes int // kept of each hash
}

// layoutFor chooses larger blocks for larger bases, so that the signature does not
// outweigh what it saves, and hashes that are long enough to make an accidental
// match unlikely: one in a million transfers.
func layoutFor(size int64) layout {
	l := layout{size: size, block: int64(math.Sqrt(float64(size))/3) &^ 63}
	l.block = min(max(l.block, minHashed), maxHashed)
	for l.count() > maxHashes {
		l.block *= 2
	}
	l.block = min(l.block, size)
	needed := bits.Len64(uint64(size)) + bits.Len64(uint64(l.count())) + 16
	l.hashBytes = min(max((needed+7)/8, minHashBytes), maxHashBytes)
	return l
}

// count returns the number of blocks.
func (l layout) count() int64 {
	if l.block == 0 {
		return 0
	}
	return (l.size + l.block - 1) / l.block
}

// offset returns where the i-th block begins.
func (l layout) offset(i int64) int64 { return min(i*l.block, l.size-l.block) }

// header returns what stands before the hashes.
func (l layout) header() []byte {
	b := binary.AppendUvarint([]byte{signatureVersion}, uint64(l.size))
	b = binary.AppendUvarint(b, uint64(l.block))
	return append(b, byte(l.hashBytes))
}

// MaxSignatureSize is that of the largest base.
const MaxSignatureSize = 1 + 2*binary.MaxVarintLen64 + 1 + maxHashes*maxHashBytes

// SignatureSize returns how many bytes Sign writes for a base of size bytes: less
// than half a percent from a few megabytes on.
func SignatureSize(size int64) int64 {
	l := layoutFor(size)
	return int64(len(l.header())) + l.count()*int64(l.hashBytes)
}

// Sign writes a signature of the base with its references mapped, for
// EncodeAgainst at the side that does not have it. A base that cannot be read is a
// *[BaseError]; errors of w are passed on.
func Sign(w io.Writer, src Source, m Mapping) error {
	b := newBase(src, m, blockSize)
	l := layoutFor(b.size)
	out := bufio.NewWriterSize(w, 64<<10)
	out.Write(l.header())
	buf := make([]byte, max(l.block, 256<<10/max(l.block, 1)*l.block))
	for i, n := int64(0), l.count(); i < n && b.err == nil; {
		k := max(min(int64(len(buf))/l.block, n-1-i), 1) // the last stands alone
		p := buf[:k*l.block]
		b.read(p, l.offset(i))
		for ; len(p) > 0; p = p[l.block:] {
			var sum [8]byte
			binary.LittleEndian.PutUint64(sum[:], polynomial(p[:l.block]))
			out.Write(sum[:l.hashBytes])
		}
		i += k
	}
	if b.err != nil {
		return b.err
	}
	return out.Flush()
}

// SignFor is Sign for one archive. Where the base has become that by its references alone,
// as its hash tells, it writes a few bytes that say so. Finding out takes time only where
// both have the same size.
func SignFor(w io.Writer, src Source, m Mapping, want *nix.PathInfo) error {
	if src.Size() != want.NARSize {
		return Sign(w, src, m)
	}
	sum, err := mappedHash(src, m)
	switch {
	case err != nil:
		return err
	case sum != want.NARHash:
		return Sign(w, src, m)
	}
	_, err = w.Write(binary.AppendUvarint([]byte{sameVersion}, uint64(want.NARSize)))
	return err
}

// mappedHash returns the NAR hash of the base with its references mapped.
func mappedHash(src Source, m Mapping) (nix.Hash, error) {
	b := newBase(src, m, blockSize)
	h := sha256.New()
	buf := make([]byte, min(b.size, 256<<10))
	for off := int64(0); off < b.size && b.err == nil; off += int64(len(buf)) {
		p := buf[:min(b.size-off, int64(len(buf)))]
		b.read(p, off)
		h.Write(p)
	}
	return nix.SHA256Hash([sha256.Size]byte(h.Sum(nil))), b.err
}

// A copier makes the delta for a base that is the archive.
type copier struct {
	size int64
	out  *blockWriter
}

func (c *copier) entry(*nar.Entry)  {}
func (c *copier) take([]byte) error { return nil }

func (c *copier) finish() error {
	c.out.copy(0, c.size)
	return nil
}

// ReadSignature reads what Sign or SignFor has written, to its last byte; if r has no
// ReadByte, perhaps beyond. What it allocates grows with what it reads, to 64 MiB
// for the largest. Anything that Sign would not write for a base of that size is a
// *[FormatError].
func ReadSignature(r io.Reader) (*Signature, error) {
	in := byteReader(r)
	v, err := in.ReadByte()
	if err != nil {
		return nil, early(err)
	}
	if v != signatureVersion && v != sameVersion {
		return nil, malformed("signature of version %#x, want %#x", v, signatureVersion)
	}
	size, err := readUvarint(in)
	if err != nil {
		return nil, err
	}
	const maxBase = 1 << 50
	if size > maxBase {
		return nil, malformed("signature of a base of %d bytes", size)
	}
	if v == sameVersion {
		return &Signature{layout: layout{size: int64(size)}, same: true}, nil
	}
	block, err := readUvarint(in)
	if err != nil {
		return nil, err
	}
	hashBytes, err := in.ReadByte()
	if err != nil {
		return nil, early(err)
	}
	s := &Signature{layout: layoutFor(int64(size))}
	if block != uint64(s.block) || int(hashBytes) != s.hashBytes {
		return nil, malformed("signature of %d bytes in blocks of %d, hashes of %d", size, block, hashBytes)
	}
	if err := s.read(in); err != nil {
		return nil, err
	}
	s.prepare()
	return s, nil
}

// read reads the hashes.
func (s *Signature) read(r io.Reader) error {
	n := s.count()
	var buf []byte
	for n > 0 {
		k := min(n, 8<<10)
		var err error
		if buf, err = readFull(r, buf, int(k)*s.hashBytes); err != nil {
			return err
		}
		for p := buf; len(p) > 0; p = p[s.hashBytes:] {
			var sum [8]byte
			copy(sum[:], p[:s.hashBytes])
			s.hashes = append(s.hashes, binary.LittleEndian.Uint64(sum[:]))
		}
		n -= k
	}
	return nil
}

// prepare makes the tables for finding hashes.
func (s *Signature) prepare() {
	words := 1
	for words*64 < len(s.hashes)*16 {
		words *= 2
	}
	s.filter = make([]uint64, words)
	s.first = make(map[uint64]int32, len(s.hashes))
	for i, h := range s.hashes {
		if _, ok := s.first[h]; !ok {
			s.first[h] = int32(i)
		}
		s.filter[h>>6&uint64(words-1)] |= 1 << (h & 63)
	}
}

// find returns a block with the hash.
func (s *Signature) find(h uint64) (int32, bool) {
	if s.filter[h>>6&uint64(len(s.filter)-1)]>>(h&63)&1 == 0 {
		return 0, false
	}
	i, ok := s.first[h]
	return i, ok
}

// EncodeAgainst does what Encode does, knowing only the signature of the base. It
// takes up to 64 MiB of memory, for a small base less.
func EncodeAgainst(w io.Writer, s *Signature, r io.Reader, o Options) (Stats, error) {
	if s.same {
		c := &copier{s.size, &blockWriter{w: w}}
		return encode(c.out, s.size, r, c)
	}
	b := &blockMatcher{s: s, out: &blockWriter{w: w, fast: o.Fast}}
	if s.block > 0 {
		b.roller = newRoller(int(s.block))
	}
	return encode(b.out, s.size, r, b)
}

// A blockMatcher looks for a base's blocks in an archive, at any place.
type blockMatcher struct {
	s      *Signature
	out    *blockWriter
	roller *roller
	buf    []byte
	done   int    // what stands in buf before it is written
	pos    int    // what stands before it and behind done has no match
	hash   uint64 // of the block at pos, if known
	known  bool
	next   int64 // the block behind the latest one found
}

func (b *blockMatcher) entry(*nar.Entry) {}

func (b *blockMatcher) take(p []byte) error {
	if b.buf = append(b.buf, p...); len(b.buf) >= 4*pieceSize {
		b.match()
		b.slide()
	}
	return nil
}

// slide drops what has been written, but for what the last block may overlap.
func (b *blockMatcher) slide() {
	if b.pos-b.done > maxGap {
		b.literal(b.pos)
	}
	n := max(min(b.done, b.pos-int(b.s.block)), 0)
	b.buf = b.buf[:copy(b.buf, b.buf[n:])]
	b.done -= n
	b.pos -= n
}

// match writes what is in buf, up to the last bytes in which no block fits.
func (b *blockMatcher) match() {
	size := int(b.s.block)
	for size > 0 && b.pos+size <= len(b.buf) {
		if !b.known {
			b.hash, b.known = polynomial(b.buf[b.pos:b.pos+size]), true
		}
		if i, ok := b.find(b.hash); ok {
			b.literal(b.pos)
			b.out.copy(b.s.offset(i), int64(size))
			b.pos += size
			b.done, b.next, b.known = b.pos, i+1, false
			continue
		}
		if b.pos+size == len(b.buf) {
			return
		}
		b.hash = b.roller.roll(b.hash, b.buf[b.pos], b.buf[b.pos+size])
		b.pos++
	}
}

// find returns a block with a hash: the next one if possible.
func (b *blockMatcher) find(h uint64) (int64, bool) {
	h &= 1<<(8*b.s.hashBytes) - 1
	if b.next < int64(len(b.s.hashes)) && b.s.hashes[b.next] == h {
		return b.next, true
	}
	i, ok := b.s.find(h)
	return int64(i), ok
}

// finish writes what is left. It is often the end of the base's last block.
func (b *blockMatcher) finish() error {
	b.match()
	if start := len(b.buf) - int(b.s.block); b.s.block > 0 && start >= 0 && b.done < len(b.buf) {
		if i, ok := b.find(polynomial(b.buf[start:])); ok {
			b.literal(max(start, b.done))
			b.out.copy(b.s.offset(i)+int64(b.done-start), int64(len(b.buf)-b.done))
			return nil
		}
	}
	b.literal(len(b.buf))
	return nil
}

func (b *blockMatcher) literal(end int) {
	if end > b.done {
		b.out.literal(b.buf[b.done:end])
		b.done = end
	}
}

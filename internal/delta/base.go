package delta

import (
	"encoding/binary"
	"io"
	"math/bits"
)

const (
	blockBits = 16
	blockSize = 1 << blockBits // of a base, read at once
	around    = hashPartSize - 1
)

// A base is a Source with its references mapped. It keeps the blocks that were
// read last. After an error, which stays in err, it seems to hold nothing.
type base struct {
	src  Source
	m    Mapping
	size int64
	err  error

	blocks []block // the n-th block of the source is in the slot n modulo their number
	raw    []byte
	hits   []int
}

type block struct {
	number int64 // plus one, so that zero is none
	data   []byte
}

// newBase keeps at most memory bytes, a power of two.
func newBase(src Source, m Mapping, memory int) *base {
	n := memory / blockSize
	for n > 1 && int64(n/2)*blockSize >= src.Size() {
		n /= 2
	}
	return &base{src: src, m: m, size: src.Size(), blocks: make([]block, n)}
}

// from returns the bytes from off on up to the end of the block that they are in,
// none if off is outside of the base. They are valid until the next call.
func (b *base) from(off int64) []byte {
	if uint64(off) >= uint64(b.size) {
		return nil
	}
	n := off >> blockBits
	slot := &b.blocks[n&int64(len(b.blocks)-1)]
	if slot.number != n+1 {
		b.load(slot, n)
	}
	return slot.data[min(int(off&(blockSize-1)), len(slot.data)):]
}

func (b *base) load(slot *block, n int64) {
	if slot.data == nil {
		slot.data = make([]byte, min(b.size, blockSize))
	}
	start := n << blockBits
	slot.number = n + 1
	slot.data = slot.data[:min(blockSize, b.size-start)]
	b.read(slot.data, start)
	if b.err != nil {
		slot.data = slot.data[:0]
	}
}

// read fills p with the bytes from off on, which must be there.
func (b *base) read(p []byte, off int64) {
	if b.err != nil {
		clear(p)
		return
	}
	// A hash part may begin before the bytes that are wanted, or end behind.
	before, behind := min(off, around), min(b.size-off-int64(len(p)), around)
	if len(b.m.parts) == 0 {
		before, behind = 0, 0
	}
	size := int(before) + len(p) + int(behind)
	if cap(b.raw) < size {
		b.raw = make([]byte, size)
	}
	raw := b.raw[:size]
	if n, err := b.src.ReadAt(raw, off-before); n < size {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		b.err = &BaseError{err}
		clear(p)
		return
	}
	b.hits = b.m.find(raw, b.hits[:0])
	b.m.replace(raw, b.hits)
	copy(p, raw[before:])
}

// match returns how many of the bytes p the base has from off on.
func (b *base) match(p []byte, off int64) int {
	done := 0
	for done < len(p) {
		have := b.from(off + int64(done))
		n := equalPrefix(p[done:], have)
		done += n
		if n < len(have) || n == 0 {
			break
		}
	}
	return done
}

// matchBack returns how many of the last bytes of p the base has up to off.
func (b *base) matchBack(p []byte, off int64) int {
	done := 0
	for done < len(p) && off > int64(done) {
		end := off - int64(done)
		start := (end - 1) &^ (blockSize - 1)
		have := b.from(start)
		if len(have) == 0 {
			break
		}
		have = have[:end-start]
		n := equalSuffix(p[:len(p)-done], have)
		done += n
		if n < len(have) {
			break
		}
	}
	return done
}

func equalPrefix(a, b []byte) int {
	n := min(len(a), len(b))
	i := 0
	for ; i+8 <= n; i += 8 {
		if x := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:]); x != 0 {
			return i + bits.TrailingZeros64(x)/8
		}
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}

func equalSuffix(a, b []byte) int {
	n := min(len(a), len(b))
	i := 0
	for i < n && a[len(a)-1-i] == b[len(b)-1-i] {
		i++
	}
	return i
}

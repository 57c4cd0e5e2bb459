package delta

import (
	"encoding/binary"
	"io"

	"github.com/klauspost/compress/zstd"
)

// version is a delta's first byte.
const version = 1

// Limits of a block, on both sides.
const (
	maxSequences = 1 << 17
	maxBytes     = 4 << 20 // of differences, and of literals
	maxNumbers   = maxSequences * binary.MaxVarintLen64
)

// The streams of a block.
const (
	lengths = iota // of the copies
	follows        // how many bytes follow a copy, and of which kind
	jumps          // to the next copy
	differences
	literals
	streams
)

// Kinds of bytes that follow a copy: the lowest bit in follows.
const (
	isLiteral = 0
	isPatch   = 1
)

// limits of the streams' sizes before compression.
var limits = [streams]int{maxNumbers, maxNumbers, maxNumbers, maxBytes, maxBytes}

// A blockWriter writes a delta, block by block. A sequence is a copy, bytes that
// follow it, and, behind literal ones, a jump in the base. It is written when the
// next one begins, since each of its parts may grow.
type blockWriter struct {
	w     io.Writer
	zstd  *zstd.Encoder
	fast  bool
	stats Stats
	err   error // of w; nothing is written after it

	count   int // sequences
	streams [streams][]byte
	out     []byte

	at     int64 // where in the base the next copy begins if there is no jump
	copied int64 // the current sequence
	follow int64
	kind   int
}

// copy adds n bytes of the base from off on.
func (b *blockWriter) copy(off, n int64) {
	b.stats.Copied += n
	if b.follow > 0 || off != b.at {
		if b.kind == isPatch && off != b.at {
			b.next(0)
		}
		b.next(off - b.at)
	}
	b.copied += n
	b.at = off + n
}

// patch adds bytes of which the differences from those of the base at the same
// place are given.
func (b *blockWriter) patch(diff []byte) {
	b.stats.Patched += int64(len(diff))
	if b.follow > 0 && b.kind == isLiteral {
		b.next(0)
	}
	b.follows(isPatch, differences, diff)
}

func (b *blockWriter) literal(p []byte) {
	b.stats.Literal += int64(len(p))
	if b.follow > 0 && b.kind == isPatch {
		b.next(0)
	}
	b.follows(isLiteral, literals, p)
}

func (b *blockWriter) follows(kind, stream int, p []byte) {
	for len(p) > 0 {
		b.kind = kind
		n := min(len(p), maxBytes-len(b.streams[stream]))
		b.streams[stream] = append(b.streams[stream], p[:n]...)
		b.follow += int64(n)
		if kind == isPatch {
			b.at += int64(n)
		}
		if p = p[n:]; len(b.streams[stream]) == maxBytes {
			b.next(0)
			b.flush()
		}
	}
}

// next ends the current sequence.
func (b *blockWriter) next(jump int64) {
	if b.copied == 0 && b.follow == 0 && jump == 0 {
		return
	}
	b.streams[lengths] = binary.AppendUvarint(b.streams[lengths], uint64(b.copied))
	b.streams[follows] = binary.AppendUvarint(b.streams[follows], uint64(b.follow)<<1|uint64(b.kind))
	if b.kind == isLiteral {
		b.streams[jumps] = binary.AppendVarint(b.streams[jumps], jump)
	}
	b.copied, b.follow, b.kind = 0, 0, isLiteral
	if b.count++; b.count == maxSequences {
		b.flush()
	}
}

// flush writes the block.
func (b *blockWriter) flush() {
	if b.count == 0 || b.err != nil {
		return
	}
	b.out = binary.AppendUvarint(b.out, uint64(b.count))
	for i, s := range b.streams {
		b.stream(s)
		b.streams[i] = s[:0]
	}
	b.count = 0
	b.write()
}

// stream appends a stream to out, compressed if that is shorter.
func (b *blockWriter) stream(s []byte) {
	const worth = 16 // less would not shrink
	if len(s) >= worth {
		if packed := b.encoder().EncodeAll(s, nil); len(packed)+2 < len(s) {
			b.out = binary.AppendUvarint(b.out, uint64(len(s))<<1|1)
			b.out = binary.AppendUvarint(b.out, uint64(len(packed)))
			b.out = append(b.out, packed...)
			return
		}
	}
	b.out = binary.AppendUvarint(b.out, uint64(len(s))<<1)
	b.out = append(b.out, s...)
}

func (b *blockWriter) encoder() *zstd.Encoder {
	if b.zstd == nil {
		level := zstd.SpeedBetterCompression
		if b.fast {
			level = zstd.SpeedFastest
		}
		// It fails for wrong options only.
		b.zstd, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1),
			zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithWindowSize(maxBytes))
	}
	return b.zstd
}

func (b *blockWriter) write() {
	n, err := b.w.Write(b.out)
	if err == nil && n < len(b.out) {
		err = io.ErrShortWrite
	}
	b.stats.Delta += int64(n)
	b.err = err
	b.out = b.out[:0]
}

// start writes what stands before the first block.
func (b *blockWriter) start(baseSize int64) {
	b.out = append(b.out[:0], version)
	b.out = binary.AppendUvarint(b.out, uint64(baseSize))
}

// finish writes what is left and the delta's end.
func (b *blockWriter) finish() error {
	b.next(0)
	b.flush()
	b.out = append(b.out, 0)
	if b.err == nil {
		b.write()
	}
	return b.err
}

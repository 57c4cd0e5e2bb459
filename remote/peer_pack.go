package remote

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/copy-closure/copy-closure/internal/wire"
)

const (
	packSize   = 192 << 10 // messages are packed together when they have so many bytes
	maxPacked  = 512 << 10 // bytes of messages that are packed together
	packWindow = 4 << 20   // of zstd: how far back what was sent before helps

	// The link is looked at after so many bytes, and not before so long: a receiver that
	// writes to its disk for a moment is no slow link.
	packPeriod = 8 << 20
	packTime   = 2 * time.Second
	// A faster link is not worth the time that compression takes.
	packBelow = 40 << 20 // bytes a second
	// A higher level has to bring so much. Where it does not, because something else than
	// the link is slow, nothing is tried for some periods, each time for twice as many.
	packGain = 1.1
	packRest = 4
	// A link that takes less than this is surely what is waited for. Then a higher level
	// is no loss, however well what comes happens to compress.
	packSlow = 8 << 20 // bytes a second
)

// Ways of compressing, chosen by the client for both directions.
const (
	PackNever  Packing = iota
	PackIfSlow         // once the link has turned out to be slow
	PackAtOnce         // until the link has turned out to be fast
	packings
)

// Packing says when messages are compressed.
type Packing int

// packLevels are tried in turn: the next where the link is what is waited for, the one
// before where compression is, and the first, which is none, where the link may be fast.
var packLevels = []zstd.EncoderLevel{
	0, zstd.SpeedFastest, zstd.SpeedDefault, zstd.SpeedBetterCompression, zstd.SpeedBestCompression,
}

// A packer compresses messages: one zstd stream for a direction, so that small paths
// profit from those before.
type packer struct {
	level   int // index in packLevels
	raw     []byte
	encoder *zstd.Encoder
	stale   bool // the encoder is of another level
	out     bytes.Buffer

	since  time.Time     // begin of the period
	taken  int           // bytes of messages in it
	passed int           // bytes put on the link in it
	total  int           // and before
	waited time.Duration // of it, for the link

	link  float64 // bytes of messages a second that the link takes, at least; 0: not known
	plain float64 // bytes a second without compression, lately; 0: not known
	goal  float64 // bytes a second for which the level is kept; 0: it is
	back  int     // the level before
	rest  int     // periods without a further attempt
	rests int     // that the last pause had
}

func newPacker(p Packing) *packer {
	switch p {
	case PackIfSlow:
		return &packer{since: time.Now()}
	case PackAtOnce:
		return &packer{level: 1, since: time.Now()}
	}
	return nil
}

// observe chooses the level by what was waited for, and by what it has brought. taken
// bytes of messages have put sent bytes on the link.
func (p *packer) observe(taken, sent int) {
	p.taken += taken
	p.passed += sent
	took := time.Since(p.since)
	if p.passed < packPeriod || took < p.period() {
		return
	}
	if p.total == 0 {
		p.taken -= nearWindow // buffers took these at once
	}
	p.total += p.passed
	rate := float64(p.taken) / took.Seconds()
	waited := float64(p.waited) / float64(took)
	p.learn(rate, waited)
	if p.level > p.back && waited > 0.5 && float64(p.passed) < packSlow*took.Seconds() {
		p.goal = 0
	}
	level := p.next(rate, waited)
	p.since, p.taken, p.passed, p.waited = time.Now(), 0, 0, 0
	p.stale = p.stale || level != p.level
	p.level = level
}

// period is how long a level is looked at. To go without what was compression for as long
// would cost more than it can tell.
func (p *packer) period() time.Duration {
	if p.goal > 0 && p.level < p.back {
		return packTime / 2
	}
	return packTime
}

// learn finds out how fast the link is: it is known when it was waited for, and at least
// as fast as what has passed when not.
func (p *packer) learn(rate, waited float64) {
	if waited > 0.5 || rate > p.link {
		p.link = rate
	}
}

// next is the level after a period in which messages passed at rate, and that share of
// it was spent waiting for the link.
func (p *packer) next(rate, waited float64) int {
	if p.level == 0 {
		p.plain = max(rate, p.plain/2) // what was fast a moment ago is no slow link
	}
	goal := p.goal
	p.goal = 0
	settled := p.total > 2*farWindow // before, it is buffers that take what is sent
	switch {
	case rate < goal:
		p.rests = max(packRest, 2*p.rests)
		p.rest = p.rests
		return p.back
	case p.level > 1 && waited < 1./8 && settled:
		return p.level - 1
	case p.rest > 0:
		p.rest--
	case p.level > 0 && (waited < 1./8 || rate > packBelow) && settled:
		return p.try(0, rate)
	case waited > 0.5 && (p.level > 0 || p.plain < packBelow):
		return p.try(min(p.level+1, len(packLevels)-1), packGain*rate)
	}
	return p.level
}

// try returns a level that is kept if messages pass at the rate goal with it.
func (p *packer) try(level int, goal float64) int {
	if level != p.level {
		p.goal, p.back = goal, p.level
	}
	return level
}

// pack compresses what was gathered. The result is valid until the next call.
func (p *packer) pack() ([]byte, error) {
	p.out.Reset()
	p.out.Write(binary.AppendUvarint(nil, uint64(len(p.raw))))
	if p.stale && p.encoder != nil {
		if err := p.encoder.Close(); err != nil {
			return nil, err
		}
		p.encoder = nil
	}
	if p.encoder == nil {
		var err error
		p.stale = false
		p.encoder, err = zstd.NewWriter(&p.out, zstd.WithEncoderLevel(packLevels[p.level]),
			zstd.WithWindowSize(packWindow), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
		if err != nil {
			return nil, err
		}
	}
	_, err := p.encoder.Write(p.raw)
	if err == nil {
		err = p.encoder.Flush()
	}
	p.raw = p.raw[:0]
	return p.out.Bytes(), err
}

// isDense reports whether b looks as if it were compressed: a sample of it uses all
// bytes equally often.
func isDense(b []byte) bool {
	const sample = 4096
	if len(b) < 2*sample {
		return false
	}
	b = b[len(b)/2:][:sample]
	var counts [256]int
	for _, c := range b {
		counts[c]++
	}
	bits := 0.0
	for _, n := range counts {
		if n > 0 {
			bits -= float64(n) * math.Log2(float64(n)/sample)
		}
	}
	return bits > 7.9*sample
}

// An unpacker restores messages that were packed.
type unpacker struct {
	packed  []byte // of the message at hand
	decoder *zstd.Decoder
	buf     []byte
}

// Read gives the decoder the message at hand, and no more.
func (u *unpacker) Read(p []byte) (int, error) {
	if len(u.packed) == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n := copy(p, u.packed)
	u.packed = u.packed[n:]
	return n, nil
}

// unpack returns the messages in p, which are valid until the next call.
func (u *unpacker) unpack(p payload) ([]byte, error) {
	size := int(p.uvarint(maxPacked))
	if p.err != nil {
		return nil, p.err
	}
	if u.decoder == nil {
		var err error
		u.decoder, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(packWindow))
		if err != nil {
			return nil, err
		}
		u.buf = make([]byte, maxPacked)
		u.packed = p.b
		if err := u.decoder.Reset(u); err != nil {
			return nil, err
		}
	}
	u.packed = p.b
	if _, err := io.ReadFull(u.decoder, u.buf[:size]); err != nil || len(u.packed) > 0 {
		return nil, &wire.FormatError{Msg: "it sends messages that are packed badly"}
	}
	return u.buf[:size], nil
}

// close gives back the decoder's memory.
func (u *unpacker) close() {
	if u.decoder != nil {
		u.decoder.Close()
	}
}

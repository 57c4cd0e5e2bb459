package delta

import (
	"bufio"
	"encoding/binary"
	"io"
	"math/bits"

	"github.com/copy-closure/copy-closure/internal/nar"
)

// Encode writes to w what Decode needs to make the archive in r from the base. It
// reads r to the archive's end, perhaps beyond, and writes in blocks on the way: a
// delta that turns out too long, or to take too long, can be given up by an error
// of w or r. Besides such errors there are *[BaseError], and *[nar.FormatError] if
// r is no archive. It takes up to 64 MiB of memory, for a small base less.
func Encode(w io.Writer, src Source, m Mapping, r io.Reader, o Options) (Stats, error) {
	b := newBase(src, m, encodeCache)
	e := &matcher{base: b, out: &blockWriter{w: w, fast: o.Fast}, aligned: true}
	if files, ok := src.(filesSource); ok {
		e.files = make(map[string]int64)
		for f := range files.Files() {
			e.files[f.Path] = f.Offset
		}
	}
	return encode(e.out, b.size, r, e)
}

const encodeCache = 16 << 20 // bytes of the base that an encoder keeps

// A comparer takes an archive and writes a delta.
type comparer interface {
	entry(*nar.Entry)    // says what comes next
	take(p []byte) error // must not keep p
	finish() error
}

// encode passes an archive to c.
func encode(out *blockWriter, baseSize int64, r io.Reader, c comparer) (Stats, error) {
	out.start(baseSize)
	f := &feeder{r: bufio.NewReaderSize(r, pieceSize), out: out, c: c}
	n := nar.NewReader(f)
	for {
		entry, err := n.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return out.stats, err
		}
		c.entry(entry)
	}
	err := c.finish()
	if err == nil {
		err = out.finish()
	}
	return out.stats, err
}

// A feeder passes on what the archive's reader reads.
type feeder struct {
	r   *bufio.Reader
	out *blockWriter
	c   comparer
}

func (f *feeder) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	f.out.stats.Size += int64(n)
	if err := f.c.take(p[:n]); err != nil {
		return 0, err
	}
	if f.out.err != nil {
		return 0, f.out.err
	}
	return n, err
}

const (
	pieceSize  = 256 << 10
	lookahead  = 64 << 10  // bytes that a match may be compared over
	maxGap     = pieceSize // bytes without a match that are kept
	keptOfGap  = 4 << 10   // for a match that is extended backwards
	minMatch   = 16
	betterBy   = 9  // bytes by which a match must exceed what the current place has
	minRun     = 32 // equal bytes after which the next ones are simply compared
	recentKept = 4
	shortGap   = 16 // bytes that are written as differences however different
)

// A hint says that a file that begins in the archive at offset may be found in the
// base at offset+shift.
type hint struct{ offset, shift int64 }

// A matcher looks for the bytes of an archive in a base, as bsdiff does: it goes
// on comparing with the place in the base that it is at, beyond differences, until
// another place fits better. Bytes that differ in between are written as
// differences from the bytes at that place, where most are equal.
type matcher struct {
	base *base
	out  *blockWriter
	x    *index

	buf   []byte
	start int64 // offset in the archive of buf[0]
	done  int   // what stands in buf before it is written
	pos   int   // what stands before it and behind done has found no match
	run   int   // bytes before pos that equal the base

	aligned bool
	shift   int64 // from an offset in the archive to one in the base
	recent  [recentKept]int64
	files   map[string]int64 // where the base has them
	hints   []hint
	hinted  int64 // the shift that belongs to the current file
}

func (m *matcher) entry(e *nar.Entry) {
	if at, ok := m.files[e.Path]; ok && e.Kind == nar.Regular {
		m.hints = append(m.hints, hint{e.Offset, at - e.Offset})
	}
}

func (m *matcher) take(p []byte) error {
	if m.buf = append(m.buf, p...); len(m.buf) >= 4*pieceSize {
		m.match(false)
	}
	return m.base.err
}

func (m *matcher) finish() error {
	m.match(true)
	return m.base.err
}

// match handles what is in buf: all of it if it is the last.
func (m *matcher) match(last bool) {
	limit := len(m.buf)
	if !last {
		limit -= lookahead
	}
	for m.pos < limit && m.base.err == nil && m.out.err == nil {
		m.useHints()
		if m.aligned && m.pos == m.done {
			n := m.base.match(m.buf[m.pos:], m.start+int64(m.pos)+m.shift)
			m.copy(n)
			m.pos = m.done
			m.run = 0
		}
		if m.pos < limit {
			m.search(limit)
		}
	}
	if last {
		m.gap(len(m.buf), 0, false)
	}
	m.start += int64(m.done)
	m.pos -= m.done
	m.buf = m.buf[:copy(m.buf, m.buf[m.done:])]
	m.done = 0
}

// useHints takes over the hint for the file that pos lies in.
func (m *matcher) useHints() {
	for len(m.hints) > 0 && m.hints[0].offset <= m.start+int64(m.pos) {
		m.hinted = m.hints[0].shift
		m.hints = m.hints[1:]
	}
}

// search looks for the next place in buf that has a match, up to limit.
func (m *matcher) search(limit int) {
	if m.x == nil {
		m.x = newIndex(m.base)
	}
	for m.pos < limit {
		if m.pos+window > len(m.buf) || m.pos-m.done > 16 && !m.x.isAnchor(m.buf[m.pos:]) {
		} else if m.aligned && m.plausible() {
			// Not worth looking elsewhere.
		} else if shift, n := m.candidate(); n > 0 {
			p := m.buf[:m.pos]
			back := m.base.matchBack(p[m.done:], m.start+int64(m.pos)+shift)
			m.gap(m.pos-back, shift, true)
			return
		}
		if m.aligned && m.equal() {
			if m.run++; m.run == minRun {
				m.gap(m.pos+1-minRun, m.shift, true)
				return
			}
		} else {
			m.run = 0
		}
		m.pos++
		if m.pos-m.done > maxGap {
			m.gapStart()
		}
		m.useHints()
	}
}

// equal tells whether the byte at pos is the base's.
func (m *matcher) equal() bool {
	b := m.base.from(m.start + int64(m.pos) + m.shift)
	return len(b) > 0 && b[0] == m.buf[m.pos]
}

// plausible tells whether enough of the next bytes equal the base's that no other
// place is likely to fit better.
func (m *matcher) plausible() bool {
	const size, enough = 32, 20
	p := m.buf[m.pos:]
	b := m.base.from(m.start + int64(m.pos) + m.shift)
	if len(p) < size || len(b) < size {
		return false
	}
	equal := 0
	for i := 0; i < size; i += 8 {
		equal += zeroBytes(binary.LittleEndian.Uint64(p[i:]) ^ binary.LittleEndian.Uint64(b[i:]))
	}
	return equal >= enough
}

// zeroBytes returns how many of the bytes of x are zero.
func zeroBytes(x uint64) int {
	const low = 0x7f7f7f7f7f7f7f7f
	return bits.OnesCount64(^((x&low + low) | x | low))
}

// candidate returns the shift, other than the current one, with the longest match
// at pos, if that is longer than what the current one has there.
func (m *matcher) candidate() (shift int64, size int) {
	p := m.buf[m.pos:min(len(m.buf), m.pos+lookahead)]
	if len(p) < minMatch {
		return 0, 0
	}
	at := m.start + int64(m.pos)
	try := func(s int64) {
		if s == m.shift && m.aligned {
			return
		}
		if have := m.base.from(at + s); len(have) < 8 || binary.LittleEndian.Uint64(have) != binary.LittleEndian.Uint64(p) {
			return
		}
		if n := m.base.match(p, at+s); n > size {
			shift, size = s, n
		}
	}
	try(m.hinted)
	for _, s := range m.recent {
		try(s)
	}
	if m.x.isAnchor(p) {
		var places [ways]int64
		for _, place := range m.x.get(hash(p), &places) {
			try(place - at)
		}
	}
	if size < minMatch || size < m.score(p[:size])+betterBy {
		return 0, 0
	}
	return shift, size
}

// score returns how many bytes of p, which stand at pos, the base has at the
// current shift.
func (m *matcher) score(p []byte) int {
	if !m.aligned {
		return 0
	}
	n := 0
	for i := 0; i < len(p); {
		have := m.base.from(m.start + int64(m.pos+i) + m.shift)
		if len(have) == 0 {
			break
		}
		have = have[:min(len(have), len(p)-i)]
		for j, c := range have {
			if c == p[i+j] {
				n++
			}
		}
		i += len(have)
	}
	return n
}

// gap writes what stands between done and end, and goes on there with shift.
func (m *matcher) gap(end int, shift int64, aligned bool) {
	p := m.buf[m.done:end]
	old, next := 0, 0 // bytes that are similar at the old shift and at the next
	if m.aligned {
		old = m.similar(p, m.shift)
	}
	if aligned {
		next = m.similarBack(p, end, shift)
	}
	if aligned && m.aligned && shift == m.shift && len(p) <= shortGap {
		old, next = len(p), 0
	}
	if over := old + next - len(p); over > 0 {
		split := m.split(p[old-over:old], m.done+old-over, shift)
		old += split - over
		next -= split
	}
	m.approximate(old)
	m.literal(len(p) - old - next)
	if m.aligned && shift != m.shift {
		copy(m.recent[1:], m.recent[:])
		m.recent[0] = m.shift
	}
	m.aligned, m.shift = aligned, shift
	m.approximate(next)
	m.pos, m.run = m.done, 0
}

// gapStart writes the beginning of a gap that becomes too long.
func (m *matcher) gapStart() {
	p := m.buf[m.done : m.pos-keptOfGap]
	old := 0
	if m.aligned {
		old = m.similar(p, m.shift)
	}
	m.approximate(old)
	if old < len(p) {
		m.aligned = false
	}
	m.literal(len(p) - old)
}

// similar returns how many of the first bytes of p, which stand at done, are best
// written as differences: more of them equal than do not.
func (m *matcher) similar(p []byte, shift int64) int {
	const patience = 64
	best, length, score := 0, 0, 0
	for i := 0; i < len(p) && score > best-patience; i++ {
		have := m.base.from(m.start + int64(m.done+i) + shift)
		if len(have) == 0 {
			break
		}
		if have[0] == p[i] {
			score++
		} else {
			score--
		}
		if score > best {
			best, length = score, i+1
		}
	}
	return length
}

// similarBack does the same for the last bytes of p, which stand before end.
func (m *matcher) similarBack(p []byte, end int, shift int64) int {
	const patience = 64
	best, length, score := 0, 0, 0
	for i := 1; i <= len(p) && score > best-patience; i++ {
		have := m.base.from(m.start + int64(end-i) + shift)
		if len(have) == 0 {
			break
		}
		if have[0] == p[len(p)-i] {
			score++
		} else {
			score--
		}
		if score > best {
			best, length = score, i
		}
	}
	return length
}

// split returns how many of the bytes p, which stand at pos, should be written with
// the current shift, the others with the next.
func (m *matcher) split(p []byte, pos int, next int64) int {
	best, at, score := 0, 0, 0
	for i, c := range p {
		off := m.start + int64(pos+i)
		if have := m.base.from(off + m.shift); len(have) > 0 && have[0] == c {
			score++
		}
		if have := m.base.from(off + next); len(have) > 0 && have[0] == c {
			score--
		}
		if score > best {
			best, at = score, i+1
		}
	}
	return at
}

// copy writes the next n bytes as a copy.
func (m *matcher) copy(n int) {
	if n > 0 {
		m.out.copy(m.start+int64(m.done)+m.shift, int64(n))
		m.done += n
	}
}

func (m *matcher) literal(n int) {
	if n > 0 {
		m.out.literal(m.buf[m.done : m.done+n])
		m.done += n
	}
}

// approximate writes the next n bytes as copies and differences.
func (m *matcher) approximate(n int) {
	const worth = 4 // equal bytes between differences that are a copy
	var diff []byte
	for end := m.done + n; m.done < end; {
		p := m.buf[m.done:end]
		same := m.base.match(p, m.start+int64(m.done)+m.shift)
		if same >= worth || same == len(p) {
			m.copy(same)
			continue
		}
		m.jumpTo()
		diff = diff[:0]
		for equal := 0; equal < worth && len(diff) < len(p); {
			have := m.base.from(m.start + int64(m.done+len(diff)) + m.shift)
			if len(have) == 0 {
				return // the base has failed
			}
			d := p[len(diff)] - have[0]
			if diff = append(diff, d); d == 0 {
				equal++
			} else {
				equal = 0
			}
		}
		for len(diff) > 0 && diff[len(diff)-1] == 0 {
			diff = diff[:len(diff)-1]
		}
		m.out.patch(diff)
		m.done += len(diff)
	}
}

// jumpTo makes the place in the base that done corresponds to the current one.
func (m *matcher) jumpTo() {
	m.out.copy(m.start+int64(m.done)+m.shift, 0)
}

package delta

import (
	"encoding/binary"
	"math/bits"

	"github.com/copy-closure/copy-closure/internal/nar"
)

const (
	pieceSize  = 256 << 10
	lookahead  = 64 << 10  // bytes that a match may be compared over
	maxGap     = pieceSize // bytes without a match that are kept
	keptOfGap  = 4 << 10   // for a match that is extended backwards
	minMatch   = window
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
		if m.doubtful() {
			if shift, ok := m.candidate(); ok {
				back := m.base.matchBack(m.buf[m.done:m.pos], m.start+int64(m.pos)+shift)
				m.gap(m.pos-back, shift, true)
				return
			}
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

// doubtful tells whether it is worth looking for another place in the base: of many
// bytes without a match only at the anchors.
func (m *matcher) doubtful() bool {
	const tryAll = 16
	p := m.buf[m.pos:]
	if len(p) < minMatch || m.pos-m.done > tryAll && !m.x.isAnchor(p) {
		return false
	}
	return !m.aligned || !m.plausible()
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
func (m *matcher) candidate() (shift int64, ok bool) {
	p := m.buf[m.pos:min(len(m.buf), m.pos+lookahead)]
	size := 0
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
	return shift, size >= minMatch && size >= m.score(p[:size])+betterBy
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
		old = m.similar(m.done, 1, len(p), m.shift)
	}
	if aligned {
		next = m.similar(end-1, -1, len(p), shift)
	}
	if aligned && m.aligned && shift == m.shift && len(p) <= shortGap {
		old, next = len(p), 0
	}
	if over := old + next - len(p); over > 0 {
		split := m.split(m.done+old-over, m.done+old, shift)
		old += split - over
		next -= split
	}
	m.approximate(old)
	m.literal(len(p) - old - next)
	if shift != m.shift {
		m.remember()
	}
	m.aligned, m.shift = aligned, shift
	m.approximate(next)
	m.pos, m.run = m.done, 0
}

// gapStart writes the beginning of a gap that becomes too long.
func (m *matcher) gapStart() {
	n := m.pos - keptOfGap - m.done
	old := 0
	if m.aligned {
		old = m.similar(m.done, 1, n, m.shift)
	}
	m.approximate(old)
	if old < n {
		m.remember()
		m.aligned = false
	}
	m.literal(n - old)
}

// remember keeps the current shift: often one finds back to it.
func (m *matcher) remember() {
	if m.aligned {
		copy(m.recent[1:], m.recent[:])
		m.recent[0] = m.shift
	}
}

// similar returns how many of n bytes, from the one at i on in steps of 1 or -1,
// are best written as differences: more of them equal than do not.
func (m *matcher) similar(i, step, n int, shift int64) int {
	const patience = 64
	best, length, score := 0, 0, 0
	for k := 0; k < n && score > best-patience; k++ {
		have := m.base.from(m.start + int64(i) + shift)
		if len(have) == 0 {
			break
		}
		if have[0] == m.buf[i] {
			score++
		} else {
			score--
		}
		if score > best {
			best, length = score, k+1
		}
		i += step
	}
	return length
}

// split returns how many of the bytes from i to end should be written with the
// current shift, the others with the next.
func (m *matcher) split(i, end int, next int64) int {
	best, at, score := 0, 0, 0
	for start := i; i < end; i++ {
		off := m.start + int64(i)
		if have := m.base.from(off + m.shift); len(have) > 0 && have[0] == m.buf[i] {
			score++
		}
		if have := m.base.from(off + next); len(have) > 0 && have[0] == m.buf[i] {
			score--
		}
		if score > best {
			best, at = score, i+1-start
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
		m.out.copy(m.start+int64(m.done)+m.shift, 0) // the place that differs
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

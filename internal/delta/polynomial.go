package delta

import "math/bits"

// The hash of a block is the number that its bytes are as digits, most significant
// first, modulo a prime. That of the block one byte further follows from it.
const (
	modulus    = 1<<61 - 1
	multiplier = 0x1b3f6a5d9c24e871
)

// polynomial returns the hash of p.
func polynomial(p []byte) uint64 {
	// Four numbers of every fourth digit each: they do not wait for each other.
	const m1 = multiplier
	m2 := timesPlus(m1, m1, 0)
	m3, m4 := timesPlus(m2, m1, 0), timesPlus(m2, m2, 0)
	var a, b, c, d uint64
	for ; len(p) >= 4; p = p[4:] {
		a = timesPlus(a, m4, uint64(p[0]))
		b = timesPlus(b, m4, uint64(p[1]))
		c = timesPlus(c, m4, uint64(p[2]))
		d = timesPlus(d, m4, uint64(p[3]))
	}
	h := timesPlus(a, m3, timesPlus(b, m2, timesPlus(c, m1, d)))
	for _, digit := range p {
		h = timesPlus(h, m1, uint64(digit))
	}
	return canonical(h)
}

// timesPlus returns a number that is x*y+z modulo the modulus, and not much larger
// than it. So may x and z be; y is smaller.
func timesPlus(x, y, z uint64) uint64 {
	high, low := bits.Mul64(x, y)
	sum := low&modulus + (high<<3 | low>>61) + z
	return sum&modulus + sum>>61
}

func canonical(x uint64) uint64 {
	if x >= modulus {
		return x - modulus
	}
	return x
}

// A roller moves a hash along.
type roller struct {
	out [256]uint64 // what to add when a digit leaves
}

// newRoller returns a roller for the hashes of size bytes.
func newRoller(size int) *roller {
	power := uint64(1) // multiplier to the size
	for range size {
		power = timesPlus(power, multiplier, 0)
	}
	r := &roller{}
	for digit := range uint64(256) {
		r.out[digit] = modulus - canonical(timesPlus(canonical(power), digit, 0))
	}
	return r
}

// roll returns the hash of the block that begins one byte further: out leaves, in
// enters.
func (r *roller) roll(h uint64, out, in byte) uint64 {
	return canonical(timesPlus(h, multiplier, r.out[out]+uint64(in)))
}

package nix

import "fmt"

// nix32Alphabet is Nix's base-32 alphabet: no e, o, u, t.
const nix32Alphabet = "0123456789abcdfghijklmnpqrsvwxyz"

// nix32Digit maps a byte to its value, or to 0xff if it is not in the alphabet.
var nix32Digit = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i := range len(nix32Alphabet) {
		t[nix32Alphabet[i]] = byte(i)
	}
	return t
}()

// nix32Len returns the length of the nix32 form of n bytes.
func nix32Len(n int) int { return (n*8 + 4) / 5 }

// EncodeNix32 returns b in Nix's base 32: digits of five bits, the most
// significant first, of b read as a little-endian number.
func EncodeNix32(b []byte) string {
	out := make([]byte, nix32Len(len(b)))
	for i := range out {
		bit := (len(out) - 1 - i) * 5
		v := uint16(b[bit/8]) >> (bit % 8)
		if bit/8+1 < len(b) {
			v |= uint16(b[bit/8+1]) << (8 - bit%8)
		}
		out[i] = nix32Alphabet[v&31]
	}
	return string(out)
}

// DecodeNix32 is the inverse of EncodeNix32. It accepts only what EncodeNix32
// produces: unused bits must be zero.
func DecodeNix32(s string) ([]byte, error) {
	n := len(s) * 5 / 8
	if nix32Len(n) != len(s) {
		return nil, fmt.Errorf("nix32 text cannot have %d characters", len(s))
	}
	out := make([]byte, n)
	for i := range len(s) {
		d := nix32Digit[s[i]]
		if d == 0xff {
			return nil, fmt.Errorf("%q is no nix32 character", s[i])
		}
		bit := (len(s) - 1 - i) * 5
		out[bit/8] |= d << (bit % 8)
		carry := uint16(d) >> (8 - bit%8)
		if carry == 0 {
			continue
		}
		if bit/8+1 >= n {
			return nil, fmt.Errorf("nix32 text has bits beyond its last byte")
		}
		out[bit/8+1] |= byte(carry)
	}
	return out, nil
}

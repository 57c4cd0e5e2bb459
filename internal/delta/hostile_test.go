package delta_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/copy-closure/copy-closure/internal/delta"
)

// limited counts what is written and fails the test when that is too much.
type limited struct {
	tb   testing.TB
	left int64
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= int64(len(p)); l.left < 0 {
		l.tb.Fatal("wrote more than the archive's size")
	}
	return len(p), nil
}

// Parts of a delta as FORMAT.md has them.

func numbers(v ...uint64) []byte {
	var b []byte
	for _, n := range v {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

func stream(p []byte) []byte { return append(numbers(uint64(len(p))<<1), p...) }

func packed(size int, p []byte) []byte {
	return append(numbers(uint64(size)<<1|1, uint64(len(p))), p...)
}

func deltaOf(blocks ...[]byte) []byte {
	d := append([]byte{1}, numbers(1000)...)
	return append(append(d, bytes.Join(blocks, nil)...), 0)
}

func block(count uint64, lengths, follows, jumps, differences, literals []byte) []byte {
	b := numbers(count)
	for _, s := range [][]byte{lengths, follows, jumps, differences, literals} {
		b = append(b, stream(s)...)
	}
	return b
}

func TestDecodeHostile(t *testing.T) {
	base := noise(1, 1000)
	encoder, err := zstd.NewWriter(nil)
	check(t, err)
	bomb := encoder.EncodeAll(make([]byte, 64<<20), nil)
	tooLong := append(bytes.Repeat([]byte{0xff}, 9), 2)
	const endless = 1 << 63
	for _, c := range []struct {
		name  string
		delta []byte
		want  string // in the error; empty if it decodes
	}{
		{"ten bytes", deltaOf(block(1, numbers(10), numbers(0), numbers(0), nil, nil)), ""},
		{"all kinds", deltaOf(block(3, numbers(3, 0, 1), numbers(2<<1|1, 0, 4<<1), numbers(6, 3), []byte{1, 2}, []byte("1234"))), ""},
		{"nothing", nil, "unexpected EOF"},
		{"no version", []byte("\x02"), "version 2, want 1"},
		{"another base", append([]byte{1}, numbers(999)...), "base of 999 bytes, not 1000"},
		{"empty", deltaOf(), "ends 10 bytes before"},
		{"no end", deltaOf(block(1, numbers(10), numbers(0), numbers(0), nil, nil))[:12], "unexpected EOF"},
		{"too much", deltaOf(block(1, numbers(11), numbers(0), numbers(0), nil, nil)), "copy of 11 bytes"},
		{"too much in two blocks", deltaOf(block(1, numbers(10), numbers(0), numbers(0), nil, nil), block(1, numbers(1), numbers(0), numbers(0), nil, nil)), "copy of 1 bytes"},
		{"endless copy", deltaOf(block(1, numbers(endless), numbers(0), numbers(0), nil, nil)), "copy of"},
		{"negative copy", deltaOf(block(1, numbers(1<<64-1), numbers(0), numbers(0), nil, nil)), "copy of"},
		{"beyond the base", deltaOf(block(2, numbers(1, 9), numbers(0, 0), numbers(2*995, 0), nil, nil)), "copy of 9 bytes"},
		{"jump beyond the base", deltaOf(block(1, numbers(1), numbers(0), numbers(2*1000), nil, nil)), "jump by 1000"},
		{"jump before the base", deltaOf(block(1, numbers(1), numbers(0), numbers(2*2-1), nil, nil)), "jump by -2"},
		{"jump far", deltaOf(block(1, numbers(1), numbers(0), numbers(1<<64-1), nil, nil)), "jump by -9223372036854775808"},
		{"many jumps", deltaOf(block(3, numbers(0, 0, 0), numbers(0, 0, 0), numbers(2, 2, 2), nil, nil)), "without bytes"},
		{"endless blocks", deltaOf(block(1, numbers(0), numbers(0), numbers(2), nil, nil)), "block without bytes"},
		{"number too large", deltaOf(block(1, tooLong, numbers(0), numbers(0), nil, nil)), "too large"},
		{"count too large", deltaOf(numbers(1<<17 + 1)), "at most"},
		{"count far too large", deltaOf(tooLong), "more than 64 bits"},
		{"too few numbers", deltaOf(block(2, numbers(10), numbers(0, 0), numbers(0, 0), nil, nil)), "ends early"},
		{"too many numbers", deltaOf(block(1, numbers(10, 1), numbers(0), numbers(0), nil, nil)), "more than its sequences use"},
		{"literals left over", deltaOf(block(1, numbers(10), numbers(0), numbers(0), nil, []byte("x"))), "more than its sequences use"},
		{"literals missing", deltaOf(block(1, numbers(0), numbers(10<<1), numbers(0), nil, []byte("x"))), "10 literal bytes"},
		{"too many literals", deltaOf(block(1, numbers(0), numbers(11<<1), numbers(0), nil, make([]byte, 11))), "11 literal bytes"},
		{"differences missing", deltaOf(block(1, numbers(0), numbers(10<<1|1), nil, []byte("x"), nil)), "10 differences"},
		{"too many differences", deltaOf(block(1, numbers(0), numbers(11<<1|1), nil, make([]byte, 11), nil)), "copy of 11 bytes"},
		{"endless literals", deltaOf(append(append(numbers(1), stream(nil)...), numbers(endless)...)), "at most"},
		{"bomb", deltaOf(append(numbers(1), packed(4<<20, bomb)...)), "at most"},
		{"bomb among literals", deltaOf(append(append(numbers(1), bytes.Repeat(stream(nil), 4)...), packed(4<<20, bomb)...)), "malformed delta: "},
		{"not compressed", deltaOf(append(numbers(1), packed(40, []byte("no zstd at all"))...)), "malformed delta: "},
		{"compressed to more", deltaOf(append(numbers(1), packed(10, make([]byte, 11))...)), "at most"},
	} {
		err := delta.Decode(&limited{t, 10}, source(base), delta.Mapping{}, bytes.NewReader(c.delta), 10)
		var formatError *delta.FormatError
		if c.want == "" && err != nil || c.want != "" && (!errors.As(err, &formatError) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// Every beginning of a delta is one that ends too early, and every damage either
// an error or another archive of at most the right size.
func TestDecodeDamaged(t *testing.T) {
	base := archive(file{"a", noise(1, 3000)}, file{"b", text(2, 3000)})
	want := archive(file{"a", append(noise(1, 2900), text(3, 500)...)}, file{"b", noise(4, 100)}, file{"c", text(2, 2500)})
	d, _ := roundTrip(t, base, want, delta.Mapping{})
	size := int64(len(want))
	for cut := range len(d) {
		err := delta.Decode(&limited{t, size}, source(base), delta.Mapping{}, bytes.NewReader(d[:cut]), size)
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d of %d: %v", cut, len(d), err)
		}
	}
	for at := range d {
		damaged := bytes.Clone(d)
		damaged[at] ^= 1 << (at % 8)
		err := delta.Decode(&limited{t, size}, source(base), delta.Mapping{}, bytes.NewReader(damaged), size)
		if formatError := (*delta.FormatError)(nil); err != nil && !errors.As(err, &formatError) {
			t.Fatalf("damaged at %d: %v", at, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	base := archive(file{"a", noise(1, 3000)}, file{"b", text(2, 3000)})
	for _, want := range [][]byte{
		base,
		archive(file{"a", append(noise(1, 2900), text(3, 500)...)}),
		archive(file{"b", text(2, 2500)}, file{"c", noise(1, 3000)}),
	} {
		d, _ := roundTrip(f, base, want, delta.Mapping{})
		f.Add(d, uint16(len(want)))
	}
	f.Fuzz(func(t *testing.T, d []byte, size uint16) {
		out := &limited{t, int64(size)}
		err := delta.Decode(out, source(base), delta.Mapping{}, bytes.NewReader(d), int64(size))
		if formatError := (*delta.FormatError)(nil); err != nil && !errors.As(err, &formatError) {
			t.Errorf("error %v", err)
		}
		if err == nil && out.left != 0 {
			t.Errorf("decoded without an error, %d bytes short", out.left)
		}
	})
}

func FuzzSignature(f *testing.F) {
	base := archive(file{"a", noise(1, 3000)}, file{"b", text(2, 3000)})
	f.Add(sign(f, base))
	f.Add([]byte{0x82, 100})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := delta.ReadSignature(bytes.NewReader(b))
		if err != nil {
			if formatError := (*delta.FormatError)(nil); !errors.As(err, &formatError) {
				t.Errorf("error %v", err)
			}
			return
		}
		if _, err := delta.EncodeAgainst(io.Discard, s, bytes.NewReader(base), delta.Options{}); err != nil {
			t.Error(err)
		}
	})
}

var update = flag.Bool("update", false, "write testdata anew")

// What was written once is read for ever: a delta, as an earlier encoder wrote it,
// and a signature, which has only one form.
func TestGolden(t *testing.T) {
	base := archive(file{"a", noise(1, 700)}, file{"b", text(2, 900)})
	want := archive(file{"a", append(noise(1, 600), text(3, 200)...)}, file{"c", text(2, 900)})
	if *update {
		d, _ := roundTrip(t, base, want, delta.Mapping{})
		check(t, os.WriteFile("testdata/v1.delta", d, 0o644))
		check(t, os.WriteFile("testdata/v1.signature", sign(t, base), 0o644))
	}
	d, err := os.ReadFile("testdata/v1.delta")
	check(t, err)
	decode(t, base, want, delta.Mapping{}, d)
	golden, err := os.ReadFile("testdata/v1.signature")
	check(t, err)
	if got := sign(t, base); !bytes.Equal(got, golden) {
		t.Errorf("signature is %x, want %x", got, golden)
	}
}

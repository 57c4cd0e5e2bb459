package delta_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/delta"
	"github.com/copy-closure/copy-closure/internal/nix"
)

// sign returns a signature, after a look at its size.
func sign(tb testing.TB, base []byte) []byte {
	tb.Helper()
	var b bytes.Buffer
	check(tb, delta.Sign(&b, source(base), delta.Mapping{}))
	if want := delta.SignatureSize(int64(len(base))); int64(b.Len()) != want {
		tb.Errorf("signature of %d bytes has %d, want %d", len(base), b.Len(), want)
	}
	return b.Bytes()
}

// roundTripAgainst does what roundTrip does, by way of a signature.
func roundTripAgainst(tb testing.TB, base, want []byte) []byte {
	tb.Helper()
	behind := bytes.NewReader(append(sign(tb, base), "next"...))
	s, err := delta.ReadSignature(behind)
	check(tb, err)
	if behind.Len() != 4 {
		tb.Errorf("%d bytes are left behind the signature, want 4", behind.Len())
	}
	var d bytes.Buffer
	stats, err := delta.EncodeAgainst(&d, s, bytes.NewReader(want), delta.Options{})
	check(tb, err)
	if stats.Size != int64(len(want)) || stats.Delta != int64(d.Len()) || stats.Copied+stats.Literal != stats.Size {
		tb.Errorf("%+v of an archive of %d bytes and a delta of %d", stats, len(want), d.Len())
	}
	decode(tb, base, want, delta.Mapping{}, d.Bytes())
	return d.Bytes()
}

func TestEncodeAgainst(t *testing.T) {
	code, other := noise(1, 3_000_000), noise(2, 100_000)
	base := archive(file{"a", code}, file{"b", other})
	for _, c := range []struct {
		name       string
		base, want []byte
		most       int // bytes of the delta
	}{
		{"the same", base, base, 20},
		{"smaller than a block", archive(), archive(), 20},
		{"an empty base", nil, archive(file{"a", other}), 100_500},
		{"a file more", base, archive(file{"a", code}, file{"aa", noise(3, 1000)}, file{"b", other}), 4000},
		{"renamed and moved", base, archive(file{"x", other}, file{"y", code}), 5000},
		{"shifted", base, archive(file{"a", code[1001:]}, file{"b", other}), 3000},
		{"nothing alike", base, archive(file{"z", noise(9, 2_000_000)}), 2_001_000},
		{"more than is kept", base, archive(file{"a", code}, file{"aa", noise(3, 1_500_000)}, file{"b", other}), 1_504_000},
	} {
		if d := roundTripAgainst(t, c.base, c.want); len(d) > c.most {
			t.Errorf("%s: %d bytes, want at most %d", c.name, len(d), c.most)
		}
	}
}

func TestSignatureSize(t *testing.T) {
	for _, size := range []int64{0, 1, 100, 255, 256, 257, 100_000, 3_000_000, 1 << 31, 1 << 40} {
		got := delta.SignatureSize(size)
		if most := max(size/40, 20); got > most || got > 16<<20 {
			t.Errorf("signature of %d bytes has %d", size, got)
		}
	}
}

func TestReadSignatureHostile(t *testing.T) {
	good := sign(t, archive(file{"a", noise(1, 10_000)}))
	for cut := range len(good) {
		if _, err := delta.ReadSignature(bytes.NewReader(good[:cut])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
	for name, b := range map[string][]byte{
		"version":        append([]byte{1}, good[1:]...),
		"block size":     append([]byte{0x81}, numbers(1000, 5, 5)...),
		"hash size":      append(append([]byte{0x81}, numbers(1000, 256)...), 8),
		"endless base":   append(append([]byte{0x81}, numbers(1<<62, 65536)...), 7),
		"endless same":   append([]byte{0x82}, numbers(1<<62)...),
		"number too big": append([]byte{0x81}, bytes.Repeat([]byte{0xff}, 10)...),
	} {
		var formatError *delta.FormatError
		if _, err := delta.ReadSignature(bytes.NewReader(b)); !errors.As(err, &formatError) || errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSignFor signs a base that becomes the archive by its references alone, and others.
func TestSignFor(t *testing.T) {
	text := strings.Repeat("in /nix/store/"+strings.Repeat("0", 32)+"-old ", 30_000)
	base := archive(file{"a", []byte(text)})
	same := archive(file{"a", []byte(strings.ReplaceAll(text, "00000000", "11111111"))})
	changed := bytes.Replace(same, []byte("in "), []byte("at "), 1)
	olds := &nix.PathInfo{Path: parse(t, "0", "old")}
	for _, c := range []struct {
		name string
		want []byte
		most int // bytes of the signature
	}{{"the same", same, 10}, {"of the same size", changed, 1 << 20}, {"longer", archive(file{"a", []byte(text + text)}), 1 << 20}} {
		want := &nix.PathInfo{Path: parse(t, "1", "old"), NARHash: nix.SHA256Hash(sha256.Sum256(c.want)), NARSize: int64(len(c.want))}
		mapping := delta.MapReferences(olds, want)
		var signature bytes.Buffer
		check(t, delta.SignFor(&signature, source(base), mapping, want))
		if size := signature.Len(); size > c.most || c.most > 10 && size < 1000 {
			t.Errorf("%s: a signature of %d bytes", c.name, size)
		}
		s, err := delta.ReadSignature(&signature)
		check(t, err)
		var d bytes.Buffer
		stats, err := delta.EncodeAgainst(&d, s, bytes.NewReader(c.want), delta.Options{})
		check(t, err)
		if stats.Size != want.NARSize || stats.Copied+stats.Literal != stats.Size {
			t.Errorf("%s: %+v", c.name, stats)
		}
		decode(t, base, c.want, mapping, d.Bytes())
	}
}

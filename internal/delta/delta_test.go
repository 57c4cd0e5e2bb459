package delta_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/delta"
	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
)

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// A file is one of an archive that a test makes up.
type file struct {
	name string
	data []byte
}

// archive returns the archive of a directory of files, which must be in order.
func archive(files ...file) []byte {
	var b []byte
	word := func(words ...string) {
		for _, s := range words {
			b = binary.LittleEndian.AppendUint64(b, uint64(len(s)))
			b = append(b, s...)
			b = append(b, make([]byte, -len(s)&7)...)
		}
	}
	word("nix-archive-1", "(", "type", "directory")
	for _, f := range files {
		word("entry", "(", "name", f.name, "node", "(", "type", "regular", "contents", string(f.data), ")", ")")
	}
	word(")")
	return b
}

// noise returns n bytes that nothing can compress.
func noise(seed uint64, n int) []byte {
	random := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.LittleEndian.AppendUint64(b, random.Uint64())
	}
	return b[:n]
}

// text returns n bytes that repeat themselves here and there.
func text(seed uint64, n int) []byte {
	random := rand.New(rand.NewPCG(seed, 1))
	var b []byte
	for len(b) < n {
		b = fmt.Appendf(b, "line %d: call %x\n", random.IntN(1000), random.IntN(1<<20))
	}
	return b[:n]
}

func source(b []byte) delta.Source { return bytes.NewReader(b) }

// roundTrip returns the delta from base to want, after it has been decoded.
func roundTrip(tb testing.TB, base, want []byte, m delta.Mapping) ([]byte, delta.Stats) {
	tb.Helper()
	var d bytes.Buffer
	stats, err := delta.Encode(&d, source(base), m, bytes.NewReader(want), delta.Options{})
	check(tb, err)
	if stats.Size != int64(len(want)) || stats.Delta != int64(d.Len()) || stats.Copied+stats.Patched+stats.Literal != stats.Size {
		tb.Errorf("%+v of an archive of %d bytes and a delta of %d", stats, len(want), d.Len())
	}
	decode(tb, base, want, m, d.Bytes())
	return d.Bytes(), stats
}

func decode(tb testing.TB, base, want []byte, m delta.Mapping, d []byte) {
	tb.Helper()
	behind := bytes.NewReader(append(slices.Clone(d), "next"...))
	var got bytes.Buffer
	check(tb, delta.Decode(&got, source(base), m, behind, int64(len(want))))
	if !bytes.Equal(got.Bytes(), want) {
		tb.Fatalf("decoded to %d bytes other than the %d encoded", got.Len(), len(want))
	}
	if behind.Len() != 4 {
		tb.Errorf("%d bytes are left behind the delta, want 4", behind.Len())
	}
}

func TestEncode(t *testing.T) {
	code, other := noise(1, 300_000), noise(2, 100_000)
	shifted := slices.Clone(code)
	for i := 100; i+4 < len(shifted); i += 50 {
		binary.LittleEndian.PutUint32(shifted[i:], binary.LittleEndian.Uint32(shifted[i:])+64)
	}
	base := archive(file{"a", code}, file{"b", other}, file{"c", text(1, 50_000)})
	for _, c := range []struct {
		name string
		want []byte
		most int // bytes of the delta
	}{
		{"the same", base, 20},
		{"inserted in a file", archive(file{"a", slices.Insert(slices.Clone(code), 1000, []byte("some words")...)}, file{"b", other}), 120},
		{"a file less", archive(file{"a", code}, file{"c", text(1, 50_000)}), 60},
		{"a file more", archive(file{"a", code}, file{"aa", noise(3, 1000)}, file{"b", other}), 1200},
		{"renamed and moved", archive(file{"x", other}, file{"y", code}), 150},
		{"addresses shifted", archive(file{"a", shifted}), 4000},
		{"files joined", archive(file{"a", slices.Concat(other, code, other)}), 150},
		{"nothing alike", archive(file{"z", noise(9, 700_000)}), 700_700},
		{"an empty directory", archive(), 120},
		{"more than a block holds", archive(file{"a", noise(5, 9_000_000)}, file{"b", code}, file{"c", noise(6, 4_500_000)}, file{"d", other}), 13_501_000},
	} {
		d, stats := roundTrip(t, base, c.want, delta.Mapping{})
		if len(d) > c.most {
			t.Errorf("%s: %d bytes, want at most %d; %+v", c.name, len(d), c.most, stats)
		}
	}
}

func TestFast(t *testing.T) {
	base, want := archive(file{"a", text(1, 50_000)}), archive(file{"a", text(2, 50_000)})
	var d bytes.Buffer
	_, err := delta.Encode(&d, source(base), delta.Mapping{}, bytes.NewReader(want), delta.Options{Fast: true})
	check(t, err)
	decode(t, base, want, delta.Mapping{}, d.Bytes())
}

// A block may end right before a jump: its literals are full.
func TestFullBlock(t *testing.T) {
	const full = 4 << 20
	code := noise(1, 10_000)
	base := archive(file{"b", code})
	size := full - 300
	for range 20 {
		_, stats := roundTrip(t, base, archive(file{"a", noise(2, size)}, file{"b", code}), delta.Mapping{})
		if stats.Literal == full {
			return
		}
		size += full - int(stats.Literal)
	}
	t.Error("no block was filled")
}

// parse reads a store path of one digit, repeated, and a name.
func parse(t *testing.T, digit, name string) nix.StorePath {
	t.Helper()
	return parseBase(t, strings.Repeat(digit, 32)+"-"+name)
}

func parseBase(t *testing.T, base string) nix.StorePath {
	t.Helper()
	p, err := nix.DefaultStoreDir.ParseBase(base)
	check(t, err)
	return p
}

func TestMapping(t *testing.T) {
	old := &nix.PathInfo{Path: parse(t, "0", "app-1.0"), References: []nix.StorePath{
		parse(t, "0", "app-1.0"), parse(t, "1", "glibc-2.37"), parse(t, "2", "zlib-1.2"), parse(t, "3", "ssl-3.0-dev"),
		parse(t, "4", "ssl-3.0"), parse(t, "5", "same-1"), parse(t, "6", "twice-1"), parse(t, "7", "twice-2"), parse(t, "8", "gone"),
	}}
	want := &nix.PathInfo{Path: parse(t, "a", "app-1.1"), References: []nix.StorePath{
		parse(t, "b", "glibc-2.37"), parse(t, "c", "zlib-1.3"), parse(t, "d", "ssl-3.1-dev"),
		parse(t, "f", "ssl-3.1"), parse(t, "5", "same-1"), parse(t, "g", "twice-3"),
	}}
	m := delta.MapReferences(old, want)
	var from, to []byte
	for _, pair := range []string{"0a", "1b", "2c", "3d", "4f", "55", "66", "77", "88"} {
		// Also where one begins within another, and at any place relative to others.
		from = append(from, strings.Repeat(pair[:1], 32)+"-x"...)
		to = append(to, strings.Repeat(pair[1:], 32)+"-x"...)
	}
	_, stats := roundTrip(t, archive(file{"f", from}), archive(file{"f", to}), m)
	if stats.Copied != stats.Size {
		t.Errorf("%+v, want everything copied", stats)
	}
}

// The result of a mapping must not depend on how the base is read: hash parts lie
// across the borders of what is read at once.
func TestMappingAnywhere(t *testing.T) {
	from, to := "0123456789abcdfghijklmnpqrsvwxyz", "zyxwvsrqpnmlkjihgfdcba9876543210"
	m := delta.MapReferences(&nix.PathInfo{Path: parseBase(t, from+"-app-1")}, &nix.PathInfo{Path: parseBase(t, to+"-app-2")})
	before, after := noise(4, 300_000), noise(4, 300_000)
	for i := 5; i+40 < len(before); i += 37 {
		copy(before[i:], from)
		copy(after[i:], to)
	}
	_, stats := roundTrip(t, archive(file{"f", before}), archive(file{"f", after}), m)
	if stats.Copied != stats.Size {
		t.Errorf("%+v, want everything copied", stats)
	}
}

func TestErrors(t *testing.T) {
	base := archive(file{"a", noise(1, 10_000)})
	broken := errors.New("broken")
	var formatError *nar.FormatError
	if _, err := delta.Encode(io.Discard, source(base), delta.Mapping{}, strings.NewReader("no archive"), delta.Options{}); !errors.As(err, &formatError) {
		t.Errorf("encoded what is no archive: %v", err)
	}
	var baseError *delta.BaseError
	if _, err := delta.Encode(io.Discard, failing{broken}, delta.Mapping{}, bytes.NewReader(base), delta.Options{}); !errors.As(err, &baseError) || !errors.Is(err, broken) {
		t.Errorf("encoded against a base that cannot be read: %v", err)
	}
	d, _ := roundTrip(t, base, base, delta.Mapping{})
	if err := delta.Decode(io.Discard, failing{broken}, delta.Mapping{}, bytes.NewReader(d), int64(len(base))); err == nil {
		t.Error("decoded with a base of another size")
	}
	if err := delta.Decode(brokenWriter{broken}, source(base), delta.Mapping{}, bytes.NewReader(d), int64(len(base))); err != broken {
		t.Errorf("error of the writer is %v", err)
	}
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }
func (f failing) Size() int64                       { return 100_000 }

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }

package delta_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/copy-closure/copy-closure/internal/delta"
	"github.com/copy-closure/copy-closure/internal/nar"
)

// BenchmarkEncode measures upgrades of real trees: those under
// $COPY_CLOSURE_PAIRS/old and $COPY_CLOSURE_PAIRS/new that have the same name, such
// as two versions of a package. It tells how large the delta is, and what part of
// the one that zstd -3 --patch-from makes. Without trees it makes some up.
func BenchmarkEncode(b *testing.B) {
	for _, p := range pairs(b) {
		b.Run(p.name, func(b *testing.B) {
			p.measure(b, func(w io.Writer) (delta.Stats, error) {
				return delta.Encode(w, p.base, delta.Mapping{}, bytes.NewReader(p.want), delta.Options{})
			})
		})
	}
}

// BenchmarkEncodeAgainst does the same by way of a signature, which counts.
func BenchmarkEncodeAgainst(b *testing.B) {
	for _, p := range pairs(b) {
		b.Run(p.name, func(b *testing.B) {
			p.measure(b, func(w io.Writer) (delta.Stats, error) {
				var signature bytes.Buffer
				if err := delta.Sign(&signature, p.base, delta.Mapping{}); err != nil {
					return delta.Stats{}, err
				}
				size := int64(signature.Len())
				s, err := delta.ReadSignature(&signature)
				if err != nil {
					return delta.Stats{}, err
				}
				stats, err := delta.EncodeAgainst(w, s, bytes.NewReader(p.want), delta.Options{})
				stats.Delta += size
				return stats, err
			})
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, p := range pairs(b) {
		b.Run(p.name, func(b *testing.B) {
			var d bytes.Buffer
			_, err := delta.Encode(&d, p.base, delta.Mapping{}, bytes.NewReader(p.want), delta.Options{})
			check(b, err)
			b.SetBytes(int64(len(p.want)))
			for b.Loop() {
				check(b, delta.Decode(io.Discard, p.base, delta.Mapping{}, bytes.NewReader(d.Bytes()), int64(len(p.want))))
			}
		})
	}
}

// A pair is an archive and its base.
type pair struct {
	name string
	base delta.Source
	want []byte
}

func (p *pair) measure(b *testing.B, encode func(io.Writer) (delta.Stats, error)) {
	b.SetBytes(int64(len(p.want)))
	var stats delta.Stats
	for b.Loop() {
		var err error
		stats, err = encode(io.Discard)
		check(b, err)
	}
	b.ReportMetric(float64(stats.Delta), "B/delta")
	if size := p.patchSize(b); size > 0 {
		b.ReportMetric(float64(stats.Delta)/float64(size), "delta/zstd")
	}
}

// patchSize returns the size of zstd's delta, 0 if there is no zstd.
func (p *pair) patchSize(b *testing.B) int {
	zstd, err := exec.LookPath("zstd")
	if err != nil {
		return 0
	}
	dir := b.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	base := make([]byte, p.base.Size())
	_, err = io.ReadFull(io.NewSectionReader(p.base, 0, p.base.Size()), base)
	check(b, err)
	check(b, os.WriteFile(from, base, 0o644))
	check(b, os.WriteFile(to, p.want, 0o644))
	out, err := exec.Command(zstd, "-q", "-3", "-c", "--patch-from="+from, to).Output()
	check(b, err)
	return len(out)
}

func pairs(b *testing.B) []*pair {
	dir := os.Getenv("COPY_CLOSURE_PAIRS")
	if dir == "" {
		return madeUpPairs()
	}
	names, err := filepath.Glob(filepath.Join(dir, "new", "*"))
	check(b, err)
	var list []*pair
	for _, path := range names {
		base, err := nar.Index(b.Context(), filepath.Join(dir, "old", filepath.Base(path)))
		check(b, err)
		b.Cleanup(func() { base.Close() })
		var want bytes.Buffer
		check(b, nar.Dump(b.Context(), &want, path))
		list = append(list, &pair{filepath.Base(path), base, want.Bytes()})
	}
	return list
}

func madeUpPairs() []*pair {
	const size = 16 << 20
	base := archive(file{"code", noise(1, size)}, file{"text", text(1, size)})
	edited := noise(1, size)
	for at := 1000; at < size; at += 50_000 {
		edited[at]++
		edited = append(edited[:at], append([]byte("inserted"), edited[at:]...)...)
	}
	var list []*pair
	for name, want := range map[string][]byte{
		"same":   base,
		"edited": archive(file{"code", edited}, file{"text", text(1, size)}),
		"other":  archive(file{"code", noise(2, size)}, file{"text", text(2, size)}),
	} {
		list = append(list, &pair{name, source(base), want})
	}
	return list
}

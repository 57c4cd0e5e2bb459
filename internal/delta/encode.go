package delta

import (
	"bufio"
	"io"

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

const encodeCache = 8 << 20 // bytes of the base that an encoder keeps

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

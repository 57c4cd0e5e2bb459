package wire

import "io"

const (
	maxFrame   = 64 << 20 // bytes that are accepted; nobody writes as many
	frameBytes = 32 << 10 // that are gathered before a frame is written
)

// A FrameWriter cuts what is written to it into frames: each is its length and so
// many bytes, without padding; a frame of no bytes ends the substream.
type FrameWriter struct {
	w   *Writer
	buf []byte
}

// NewFrameWriter returns a FrameWriter onto w.
func NewFrameWriter(w *Writer) *FrameWriter { return &FrameWriter{w: w} }

// Write appends bytes. Large pieces become frames as they are.
func (f *FrameWriter) Write(p []byte) (int, error) {
	if len(f.buf)+len(p) < frameBytes {
		f.buf = append(f.buf, p...)
		return len(p), nil
	}
	if err := f.frame(f.buf); err != nil {
		return 0, err
	}
	f.buf = f.buf[:0]
	return len(p), f.frame(p)
}

func (f *FrameWriter) frame(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	f.w.Uint64(uint64(len(p)))
	_, err := f.w.Write(p)
	return err
}

// Close writes what was gathered and ends the substream.
func (f *FrameWriter) Close() error {
	err := f.frame(f.buf)
	f.Abort()
	return err
}

// Abort ends the substream without what was gathered.
func (f *FrameWriter) Abort() {
	f.buf = nil
	f.w.Uint64(0)
}

// A FrameReader reads a framed substream. It returns io.EOF at the frame that ends
// it, and never reads beyond.
type FrameReader struct {
	r     *Reader
	left  uint64 // of the frame
	ended bool
}

// NewFrameReader returns a FrameReader of what follows in r.
func NewFrameReader(r *Reader) *FrameReader { return &FrameReader{r: r} }

// Read reads from at most one frame. Errors other than io.EOF are those of the
// stream, and r keeps them.
func (f *FrameReader) Read(p []byte) (int, error) {
	if f.ended {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	if f.left == 0 {
		f.left = f.r.Uint64()
		switch {
		case f.r.err != nil:
			f.r.err = unexpected(f.r.err)
			return 0, f.r.err
		case f.left == 0:
			f.ended = true
			return 0, io.EOF
		case f.left > maxFrame:
			f.r.err = formatErrorf("frame of %d bytes is longer than %d", f.left, maxFrame)
			return 0, f.r.err
		}
	}
	n, err := f.r.buf.Read(p[:min(uint64(len(p)), f.left)])
	f.left -= uint64(n)
	if err != nil {
		f.r.err = unexpected(err)
		return n, f.r.err
	}
	return n, nil
}

// Drain reads up to the end of the substream and returns how many bytes there were.
func (f *FrameReader) Drain() (int64, error) { return io.Copy(io.Discard, f) }

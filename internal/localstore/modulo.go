package localstore

import (
	"bytes"
	"fmt"
	"hash"
)

// A moduloWriter hashes a stream modulo a hash part, as Nix does for what refers
// to itself: each occurrence counts as zero bytes, and the places of all are
// hashed behind the stream.
type moduloWriter struct {
	hash   hash.Hash
	part   []byte
	buf    []byte // bytes not hashed yet, fewer than the part has between writes
	offset int64  // of buf in the stream
	places []byte
}

func newModuloWriter(h hash.Hash, part string) *moduloWriter {
	return &moduloWriter{hash: h, part: []byte(part)}
}

func (w *moduloWriter) Write(p []byte) (int, error) {
	w.buf = append(w.buf, p...)
	for {
		i := bytes.Index(w.buf, w.part)
		if i < 0 {
			break
		}
		w.places = fmt.Appendf(w.places, "|%d", w.offset+int64(i))
		w.pass(i)
		clear(w.buf[:len(w.part)])
		w.pass(len(w.part))
	}
	w.pass(max(0, len(w.buf)-len(w.part)+1))
	return len(p), nil
}

// pass hashes the first n bytes of the buffer.
func (w *moduloWriter) pass(n int) {
	w.hash.Write(w.buf[:n])
	w.offset += int64(n)
	w.buf = append(w.buf[:0], w.buf[n:]...)
}

// finish hashes what is left. Nothing may be written afterwards.
func (w *moduloWriter) finish() {
	w.pass(len(w.buf))
	w.hash.Write(w.places)
}

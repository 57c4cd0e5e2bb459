package localstore

import (
	"bytes"
	"fmt"
	"hash"
)

// maxPlaces bounds the text that says where an archive contains its own hash part.
const maxPlaces = 16 << 20 // bytes

// A moduloWriter hashes a stream modulo a hash part, as Nix does for what refers
// to itself: each occurrence counts as zero bytes. Before version 2.17 Nix also hashed the
// places of all occurrences, behind the stream.
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
	done := 0
	for {
		i := bytes.Index(w.buf[done:], w.part)
		if i < 0 {
			break
		}
		if len(w.places) < maxPlaces {
			w.places = fmt.Appendf(w.places, "|%d", w.offset+int64(done+i))
		}
		clear(w.buf[done+i:][:len(w.part)])
		done += i + len(w.part)
	}
	w.pass(max(done, len(w.buf)-len(w.part)+1))
	return len(p), nil
}

// pass hashes the first n bytes of the buffer.
func (w *moduloWriter) pass(n int) {
	w.hash.Write(w.buf[:n])
	w.offset += int64(n)
	w.buf = append(w.buf[:0], w.buf[n:]...)
}

// finish hashes what is left, and returns the digests that Nix computes today and, unless
// there were more places than are kept, before 2.17. Nothing may be written afterwards.
func (w *moduloWriter) finish() [][]byte {
	w.pass(len(w.buf))
	digests := [][]byte{w.hash.Sum(nil)}
	if len(w.places) < maxPlaces {
		w.hash.Write(w.places)
		digests = append(digests, w.hash.Sum(nil))
	}
	return digests
}

package nar

import (
	"hash"
	"runtime"
	"sync"
)

const (
	hashBuffers    = 4
	hashBufferSize = 128 << 10
)

// A Hasher is a writer that computes a hash on a goroutine of its own, so that
// hashing and moving data take place at the same time. It holds at most 512 KiB.
// Short streams are hashed on the caller's goroutine, and all where the process has
// one processor. It pays for large files and
// where the other side of a link is waited for; a Dump of many small files reads
// ahead while w is hashing anyway, and gains nothing. Write never fails. Sum must
// be called in the end, also when the hash is not wanted any more, or the
// goroutine stays. A Hasher may be used by one goroutine at a time.
type Hasher struct {
	hash    hash.Hash
	direct  bool // nothing is handed on
	buf     []byte
	made    int
	todo    chan []byte
	free    chan []byte
	running sync.WaitGroup
}

// NewHasher returns a Hasher that owns h.
func NewHasher(h hash.Hash) *Hasher { return NewHasherIf(true, h) }

// NewHasherIf returns one that has a goroutine of its own only if apart: where as many
// streams as there are processors are hashed anyway, it would only move data about.
func NewHasherIf(apart bool, h hash.Hash) *Hasher {
	return &Hasher{hash: h, direct: !apart || runtime.GOMAXPROCS(0) == 1}
}

// Write does not keep p.
func (h *Hasher) Write(p []byte) (int, error) {
	if h.direct {
		return h.hash.Write(p)
	}
	n := len(p)
	for len(p) > 0 {
		if len(h.buf) == hashBufferSize {
			h.handOn()
		}
		k := min(len(p), hashBufferSize-len(h.buf))
		h.buf = append(h.buf, p[:k]...)
		p = p[k:]
	}
	return n, nil
}

// Sum waits until all that was written is hashed and returns the hash. More may
// be written afterwards.
func (h *Hasher) Sum() []byte {
	if h.todo != nil {
		close(h.todo)
		h.running.Wait()
		h.todo = nil
	}
	h.hash.Write(h.buf)
	h.buf = h.buf[:0]
	return h.hash.Sum(nil)
}

// handOn gives the buffer to the goroutine and takes another.
func (h *Hasher) handOn() {
	if h.free == nil {
		h.free = make(chan []byte, hashBuffers)
		h.made = 1
	}
	if h.todo == nil {
		todo := make(chan []byte, hashBuffers)
		h.todo = todo
		h.running.Go(func() {
			for buf := range todo {
				h.hash.Write(buf)
				h.free <- buf[:0]
			}
		})
	}
	h.todo <- h.buf
	if h.made < hashBuffers {
		h.made++
		h.buf = make([]byte, 0, hashBufferSize)
		return
	}
	h.buf = <-h.free
}

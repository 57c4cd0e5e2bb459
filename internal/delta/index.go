package delta

import "encoding/binary"

const (
	maxEntries = 1 << 20
	checkBits  = 10 // of a hash, in an entry
	ways       = 4  // entries of a bucket
	window     = 16 // bytes that are hashed
	minRare    = 2
)

// An index finds places in a base by the window bytes that stand there. It holds
// places that are chosen by what stands there, their anchors, so that only anchors
// need to be looked for; they are the rarer, the larger the base is, such that it
// does not take more memory.
type index struct {
	rare    uint64   // an anchor is one of 1<<rare places, on average
	shift   uint     // of a hash, to find its bucket
	entries []uint32 // number in places + 1, and some bits of the hash
	places  []int64
}

// newIndex reads the whole base.
func newIndex(b *base) *index {
	x := &index{rare: minRare, shift: 64}
	for b.size>>x.rare > maxEntries*3/4 {
		x.rare++
	}
	n := int64(ways)
	for n < b.size>>x.rare*4/3 {
		n *= 2
		x.shift--
	}
	x.entries = make([]uint32, n)
	x.places = make([]int64, 0, min(b.size>>x.rare*9/8+64, maxEntries))
	x.fill(b)
	return x
}

func (x *index) fill(b *base) {
	const piece = 1 << 20
	buf := make([]byte, min(b.size, int64(piece+window)))
	for at := int64(0); at < b.size; at += piece {
		p := buf[:min(int64(len(buf)), b.size-at)]
		b.read(p, at)
		for i := range min(piece, len(p)-window+1) {
			if x.isAnchor(p[i:]) {
				x.put(hash(p[i:]), at+int64(i))
			}
		}
	}
}

// isAnchor tells whether a place with the bytes p is in the index.
func (x *index) isAnchor(p []byte) bool {
	a := binary.LittleEndian.Uint64(p)
	return a*0x9e3779b97f4a7c15>>(64-x.rare) == 1
}

// hash returns the hash of the first window bytes of p.
func hash(p []byte) uint64 {
	const k1, k2 = 0x9e3779b97f4a7c15, 0xc2b2ae3d27d4eb4f
	a, b := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])
	h := (a*k2 ^ a>>29) + b*k1
	h ^= h >> 32
	return h * k2
}

// bucket returns the entries where h belongs, and what marks them.
func (x *index) bucket(h uint64) ([]uint32, uint32) {
	at := h >> x.shift * ways
	return x.entries[at : at+ways : at+ways], uint32(h) >> 5 & (1<<checkBits - 1)
}

// put adds a place, and drops the oldest of those in its bucket. What comes when
// places is full, which is larger than needed on average, is left out.
func (x *index) put(h uint64, place int64) {
	if len(x.places) == maxEntries-1 {
		return
	}
	x.places = append(x.places, place)
	entries, check := x.bucket(h)
	copy(entries[1:], entries[:ways-1])
	entries[0] = uint32(len(x.places))<<checkBits | check
}

// get returns the places in the base where h may have been found.
func (x *index) get(h uint64, places *[ways]int64) []int64 {
	entries, check := x.bucket(h)
	n := 0
	for _, e := range entries {
		if e != 0 && e&(1<<checkBits-1) == check {
			places[n] = x.places[e>>checkBits-1]
			n++
		}
	}
	return places[:n]
}

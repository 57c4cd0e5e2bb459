package remote

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/copy-closure/copy-closure/internal/wire"
)

// TestPackLevels packs across changes of the level, there and back.
func TestPackLevels(t *testing.T) {
	p := newPacker(PackAtOnce)
	var u unpacker
	defer u.close()
	text := []byte(strings.Repeat("a path of many paths ", 4000))
	for i, level := range []int{2, 2, 3, 3, 4, 1, 1, 2} {
		if level != p.level {
			p.level, p.stale = level, true
		}
		want := append(noise(uint64(i), 100), text...)
		p.raw = append(p.raw, want...)
		packed, err := p.pack()
		if err != nil {
			t.Fatal(err)
		}
		if len(packed) > len(want)/10 {
			t.Errorf("%d bytes are packed into %d", len(want), len(packed))
		}
		got, err := u.unpack(payload{b: bytes.Clone(packed)})
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("step %d: %d bytes are unpacked of %d: %v", i, len(got), len(want), err)
		}
	}
}

func TestPackObserves(t *testing.T) {
	const slow = packPeriod // bytes a second
	for _, test := range []struct {
		name         string
		packer       packer
		rate, waited float64
		level, rest  int
	}{
		{"slow link", packer{}, slow, 0.9, 1, 0},
		{"fast link", packer{}, 10 * slow, 0.9, 0, 0},
		{"slow source", packer{}, slow, 0.1, 0, 0},
		{"no gain before", packer{rest: 3}, slow, 0.9, 0, 2},
		{"gain", packer{level: 1, goal: slow}, 2 * slow, 0.3, 1, 0},
		{"no gain", packer{level: 3, goal: slow, back: 2}, slow / 2, 0.9, 2, packRest},
		{"no gain again", packer{level: 1, goal: slow, rests: packRest}, slow / 2, 0.9, 0, 2 * packRest},
		{"link is the limit", packer{level: 1, goal: slow}, 2 * slow, 0.9, 2, 0},
		{"best already", packer{level: 4}, slow, 0.9, 4, 0},
		{"compression is the limit", packer{level: 2}, 2 * slow, 0.01, 1, 0},
		{"even that", packer{level: 1}, slow, 0.01, 0, 0},
		{"it was faster nevertheless", packer{goal: slow, back: 1}, slow / 2, 0.9, 1, packRest},
		{"as it was a moment ago", packer{level: 1, rest: 2}, slow, 0.01, 1, 1},
		{"in balance", packer{level: 2}, slow, 0.3, 2, 0},
		{"perhaps fast", packer{level: 2}, 10 * slow, 0.3, 0, 0},
		{"not fast", packer{goal: 10 * slow, back: 2}, 5 * slow, 0.9, 2, packRest},
	} {
		p := test.packer
		p.total = 1 << 30
		if p.level = p.next(test.rate, test.waited); p.level != test.level || p.rest != test.rest {
			t.Errorf("%s: from level %d to %d with a rest of %d, want %d and %d",
				test.name, test.packer.level, p.level, p.rest, test.level, test.rest)
		}
	}
}

// TestPackPeriod lets the link be slow for a moment only.
func TestPackPeriod(t *testing.T) {
	for took, want := range map[time.Duration]int{packTime / 2: 0, 2 * packTime: 1} {
		p := &packer{since: time.Now().Add(-took), waited: took}
		if p.observe(packPeriod, packPeriod); p.level != want {
			t.Errorf("level %d after %v, want %d", p.level, took, want)
		}
	}
}

// TestPackTrial has a trial without compression, which is slower: it ends soon.
func TestPackTrial(t *testing.T) {
	p := &packer{since: time.Now().Add(-packTime / 2), total: 1 << 30, goal: 1 << 30, back: 1}
	if p.observe(packPeriod, packPeriod); p.level != 1 {
		t.Errorf("level %d after a trial of %v, want 1", p.level, packTime/2)
	}
}

// TestPackSlowLink has a higher level that has brought little, on a link that is surely
// what was waited for, and on one that may not be.
func TestPackSlowLink(t *testing.T) {
	const took = 2 * packTime
	for passed, want := range map[int]int{packPeriod: 3, 8 * packPeriod: 1} {
		p := &packer{level: 2, back: 1, goal: 1 << 40, since: time.Now().Add(-took), waited: took}
		if p.observe(passed, passed); p.level != want {
			t.Errorf("after %d bytes in %v: level %d, want %d", passed, took, p.level, want)
		}
	}
}

// TestLinkRate has periods with and without waiting for the link.
func TestLinkRate(t *testing.T) {
	p := new(packer)
	for _, period := range []struct{ rate, waited, want float64 }{
		{100, 0, 100}, // so fast at least
		{50, 0.4, 100},
		{200, 0.1, 200},
		{150, 0.9, 150},
		{120, 0.2, 150},
	} {
		if p.learn(period.rate, period.waited); p.link != period.want {
			t.Errorf("after %+v the link has %f", period, p.link)
		}
	}
}

// TestKeepsUp has a server that has computed 16 MiB of deltas in a second.
func TestKeepsUp(t *testing.T) {
	p := peerServer{out: messageWriter{packer: new(packer)}}
	p.pace.Begin(time.Unix(1, 0))
	p.pace.End(time.Unix(2, 0), 16<<20)
	for link, want := range map[float64]bool{0: true, 15 << 20: true, 17 << 20: false} {
		p.out.packer.link = link
		if got := p.keepsUp(item{}); got != want || !p.keepsUp(item{always: true}) {
			t.Errorf("a link of %f bytes a second: a delta %t, want %t, and always where it must be", link, got, want)
		}
	}
	p.out.packer = nil
	if !p.keepsUp(item{}) {
		t.Error("a link that is not known is taken for a fast one")
	}
}

func TestIsDense(t *testing.T) {
	if !isDense(noise(1, 64<<10)) {
		t.Error("noise is not dense")
	}
	if isDense(bytes.Repeat([]byte("the quick brown fox "), 4000)) || isDense(noise(1, 100)) {
		t.Error("text, or little, is dense")
	}
}

func TestHostilePacks(t *testing.T) {
	p := newPacker(PackAtOnce)
	p.raw = append(p.raw, "\x06\x00\x06\x00"...)
	good, err := p.pack()
	if err != nil {
		t.Fatal(err)
	}
	good = bytes.Clone(good)
	message := func(content []byte) []byte {
		return append([]byte{msgPacked, byte(len(content))}, content...)
	}
	longer, shorter := bytes.Clone(good), bytes.Clone(good)
	longer[0], shorter[0] = 5, 3
	for name, stream := range map[string][]byte{
		"size too large":   message(append([]byte{5}, good[1:]...)),
		"size too small":   message(shorter),
		"beyond the limit": message([]byte("\xff\xff\xff\x7f")),
		"no zstd":          message([]byte("\x04hello world")),
		"nothing":          message([]byte("\x04")),
		"something behind": message(append(bytes.Clone(good), "xyz"...)),
	} {
		in := newMessageReader(bytes.NewReader(stream))
		var err error
		for err == nil {
			_, err = in.next()
		}
		in.close()
		if _, ok := errors.AsType[*wire.FormatError](err); !ok {
			t.Errorf("%s: error is %v, want a *wire.FormatError", name, err)
		}
	}
	in := newMessageReader(bytes.NewReader(message(good)))
	defer in.close()
	for range 2 {
		if m, err := in.next(); err != nil || m.kind != msgFlush {
			t.Errorf("read %v, %v", m, err)
		}
	}
	if _, err := in.next(); err != io.EOF {
		t.Errorf("error is %v at the end", err)
	}
}

func FuzzMessages(f *testing.F) {
	p := newPacker(PackAtOnce)
	p.raw = append(p.raw, "\x06\x00\x03\x03\x00ab"...)
	packed, err := p.pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append([]byte{msgPacked, byte(len(packed))}, packed...))
	f.Add([]byte("\x03\x03\x00ab\x04\x01\x00\x05\x02\x00\x00"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		in := newMessageReader(bytes.NewReader(stream))
		defer in.close()
		for {
			m, err := in.next()
			if err != nil {
				return
			}
			if len(m.buf) > maxMessage {
				t.Fatalf("a message of %d bytes", len(m.buf))
			}
		}
	})
}

// TestPackLargestData sends the largest message there is: it is compressed like others.
func TestPackLargestData(t *testing.T) {
	w := &messageWriter{bundle: newBundle(1 << 20), packer: &packer{level: 2, since: time.Now()}}
	if err := w.send(msgData, []byte{1}, bytes.Repeat([]byte("quick fox\n"), maxData)[:maxData]); err != nil {
		t.Fatal(err)
	}
	if err := w.flush(); err != nil || w.bundle.next > 16<<10 {
		t.Errorf("%d bytes on the way, %v", w.bundle.next, err)
	}
}

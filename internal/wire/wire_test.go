package wire_test

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

const hello = "/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-hello-2.12.1"

func TestRoundTrip(t *testing.T) {
	p, err := nix.DefaultStoreDir.Parse(hello)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	w.Uint64(1 << 40)
	w.Bool(true)
	w.String("")
	w.String("seven77")
	w.String("eight888")
	w.Strings([]string{"a", "b"})
	w.Path(nix.StorePath{})
	w.Paths([]nix.StorePath{p, p})
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if b.Len()%8 != 0 {
		t.Errorf("%d bytes are no multiple of eight", b.Len())
	}
	r := wire.NewReader(&b)
	if n := r.Uint64(); n != 1<<40 {
		t.Errorf("integer %d", n)
	}
	if !r.Bool() {
		t.Error("true became false")
	}
	for _, want := range []string{"", "seven77", "eight888"} {
		if s := r.String(8); s != want {
			t.Errorf("string %q, want %q", s, want)
		}
	}
	if l := r.Strings(2, 1); len(l) != 2 || l[1] != "b" {
		t.Errorf("strings %q", l)
	}
	if q := r.OptionalPath(nix.DefaultStoreDir); !q.IsZero() {
		t.Errorf("no path became %v", q)
	}
	if l := r.Paths(nix.DefaultStoreDir, 2); len(l) != 2 || l[0] != p {
		t.Errorf("paths %v", l)
	}
	if r.Err() != nil {
		t.Error(r.Err())
	}
	if r.Uint64(); !errors.Is(r.Err(), io.EOF) {
		t.Errorf("at the end: %v, want EOF", r.Err())
	}
}

func TestReaderRefuses(t *testing.T) {
	word := func(n byte) string { return string([]byte{n, 0, 0, 0, 0, 0, 0, 0}) }
	huge := strings.Repeat("\xff", 8)
	for name, c := range map[string]struct {
		bytes string
		read  func(*wire.Reader)
	}{
		"long string":      {word(9) + strings.Repeat("x", 16), func(r *wire.Reader) { _ = r.String(8) }},
		"huge string":      {huge, func(r *wire.Reader) { _ = r.String(1 << 20) }},
		"padding":          {word(1) + "x\x00\x00\x00\x00\x00\x00\x01", func(r *wire.Reader) { _ = r.String(8) }},
		"cut string":       {word(8) + "1234", func(r *wire.Reader) { _ = r.String(8) }},
		"cut integer":      {"1234", func(r *wire.Reader) { r.Uint64() }},
		"huge list":        {huge, func(r *wire.Reader) { r.Strings(10, 10) }},
		"cut list":         {word(2) + word(0), func(r *wire.Reader) { r.Strings(10, 10) }},
		"negative integer": {huge, func(r *wire.Reader) { r.Int64() }},
		"other store":      {word(8) + "/tmp/abc", func(r *wire.Reader) { r.Path(nix.DefaultStoreDir) }},
		"no path":          {word(0), func(r *wire.Reader) { r.Path(nix.DefaultStoreDir) }},
	} {
		r := wire.NewReader(strings.NewReader(c.bytes))
		c.read(r)
		if r.Err() == nil || errors.Is(r.Err(), io.EOF) {
			t.Errorf("%s: error %v", name, r.Err())
		}
		first := r.Err()
		if r.Uint64() != 0 || r.Err() != first {
			t.Errorf("%s: the first error does not stick", name)
		}
	}
}

// TestReaderMemory claims long lists and strings that never come.
func TestReaderMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 100 {
		r := wire.NewReader(strings.NewReader("\x00\x00\x40\x00\x00\x00\x00\x00"))
		r.Paths(nix.DefaultStoreDir, wire.MaxPaths)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 16<<20 {
		t.Errorf("%d bytes allocated for 100 lists of nothing", used)
	}
}

func FuzzReader(f *testing.F) {
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	w.String("hello")
	w.Strings([]string{"a", hello})
	w.Flush()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		r := wire.NewReader(bytes.NewReader(data))
		s := r.String(1 << 10)
		l := r.Strings(16, 1<<10)
		if r.Err() != nil {
			return
		}
		var out bytes.Buffer
		w := wire.NewWriter(&out)
		w.String(s)
		w.Strings(l)
		w.Flush()
		if !bytes.HasPrefix(data, out.Bytes()) {
			t.Errorf("%x is accepted, but encodes to %x", data, out.Bytes())
		}
	})
}

// TestSignatures reads more signatures than a path may have, and malformed ones.
func TestSignatures(t *testing.T) {
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	sigs := []string{"evil-1:AAAA", "a\nb:" + strings.Repeat("A", 86) + "==", strings.Repeat("x", wire.MaxField)}
	for i := range 3000 {
		sigs = append(sigs, strconv.Itoa(i)+":"+strings.Repeat("A", 86)+"==")
	}
	w.Strings(sigs)
	w.Uint64(7)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	r := wire.NewReader(&b)
	got := r.Signatures()
	if len(got) != nix.MaxSignatures || got[0] != sigs[3] || r.Uint64() != 7 || r.Err() != nil {
		t.Errorf("%d signatures, then %v", len(got), r.Err())
	}
}

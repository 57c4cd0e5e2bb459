package wire_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/wire"
)

// framed is what a FrameWriter makes of pieces.
func framed(t *testing.T, pieces ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	f := wire.NewFrameWriter(w)
	for _, p := range pieces {
		if n, err := f.Write(p); n != len(p) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestFrames(t *testing.T) {
	small, large := []byte("small"), bytes.Repeat([]byte("large"), 20000)
	for _, pieces := range [][][]byte{
		nil, {small}, {large}, {small, large, small}, {large, small, small, large}, {nil, small, nil},
	} {
		stream := append(framed(t, pieces...), "behind"...)
		r := wire.NewReader(bytes.NewReader(stream))
		f := wire.NewFrameReader(r)
		got, err := io.ReadAll(f)
		if want := bytes.Join(pieces, nil); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d pieces: read %d bytes, %v; want %d", len(pieces), len(got), err, len(want))
		}
		if n, err := f.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%d pieces: Read behind the end = %d, %v", len(pieces), n, err)
		}
		if rest, err := io.ReadAll(r.Raw()); string(rest) != "behind" || err != nil {
			t.Errorf("%d pieces: left %q, %v", len(pieces), rest, err)
		}
	}
}

func TestFramesAborted(t *testing.T) {
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	f := wire.NewFrameWriter(w)
	f.Write([]byte("gathered"))
	f.Abort()
	w.Flush()
	if got, err := io.ReadAll(wire.NewFrameReader(wire.NewReader(&b))); len(got) > 0 || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestFramesCut(t *testing.T) {
	stream := framed(t, []byte("one"))
	for n := range stream {
		r := wire.NewReader(bytes.NewReader(stream[:n]))
		_, err := wire.NewFrameReader(r).Drain()
		if !errors.Is(err, io.ErrUnexpectedEOF) || r.Err() == nil {
			t.Errorf("cut at byte %d: %v, the stream's error is %v", n, err, r.Err())
		}
	}
}

func TestFrameTooLong(t *testing.T) {
	r := wire.NewReader(strings.NewReader("\x01\x00\x00\x04\x00\x00\x00\x00"))
	_, err := wire.NewFrameReader(r).Drain()
	var format *wire.FormatError
	if !errors.As(err, &format) {
		t.Errorf("error is %v, want a *wire.FormatError", err)
	}
}

// FuzzFrames writes again what it can read.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("\x05\x00\x00\x00\x00\x00\x00\x00hello\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		content, err := io.ReadAll(wire.NewFrameReader(wire.NewReader(bytes.NewReader(stream))))
		if err != nil {
			return
		}
		again, err := io.ReadAll(wire.NewFrameReader(wire.NewReader(bytes.NewReader(framed(t, content)))))
		if err != nil || !bytes.Equal(again, content) {
			t.Errorf("%q became %q, %v", content, again, err)
		}
	})
}

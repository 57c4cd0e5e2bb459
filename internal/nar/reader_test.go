package nar_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/internal/nar"
)

// golden is what nix-store --dump makes of a file that contains "hello\n".
const golden = "0d000000000000006e69782d617263686976652d3100000001000000000000002800000000000000" +
	"040000000000000074797065000000000700000000000000726567756c6172000800000000000000" +
	"636f6e74656e7473060000000000000068656c6c6f0a000001000000000000002900000000000000"

// words encodes each string as the format does, except that "=N" is the bare
// integer N and "!S" are the bare bytes S.
func words(list ...string) []byte {
	var b []byte
	for _, s := range list {
		var n uint64
		if _, err := fmt.Sscanf(s, "=%d", &n); err == nil {
			b = appendUint64(b, n)
		} else if raw, ok := strings.CutPrefix(s, "!"); ok {
			b = append(b, raw...)
		} else {
			b = appendUint64(b, uint64(len(s)))
			b = append(b, s...)
			b = append(b, make([]byte, -len(s)&7)...)
		}
	}
	return b
}

func appendUint64(b []byte, n uint64) []byte {
	for i := range 8 {
		b = append(b, byte(n>>(8*i)))
	}
	return b
}

// archive encodes an archive of which words are all but the first one.
func archive(list ...string) []byte {
	return append(words("nix-archive-1"), words(list...)...)
}

// inDirectory encodes a directory of empty files with the given names.
func inDirectory(names ...string) []byte {
	list := []string{"(", "type", "directory"}
	for _, name := range names {
		list = append(list, "entry", "(", "name", name, "node", "(", "type", "regular", "contents", "", ")", ")")
	}
	return archive(append(list, ")")...)
}

// nested encodes n directories in each other.
func nested(n int) []byte {
	list := []string{"(", "type", "directory"}
	for range n - 1 {
		list = append(list, "entry", "(", "name", "d", "node", "(", "type", "directory")
	}
	for range n - 1 {
		list = append(list, ")", ")")
	}
	return archive(append(list, ")")...)
}

// reencode reads an archive from r and writes it anew.
func reencode(r io.Reader) ([]byte, error) {
	var out bytes.Buffer
	w := nar.NewWriter(&out)
	n := nar.NewReader(r)
	for {
		e, err := n.Next()
		if err == io.EOF {
			err := w.Close()
			return out.Bytes(), err
		}
		if err != nil {
			return nil, err
		}
		if err := w.Next(e); err != nil {
			return nil, fmt.Errorf("write what was read: %w", err)
		}
		if _, err := io.Copy(w, n); err != nil {
			return nil, err
		}
	}
}

// sample returns an archive with everything in it.
func sample(tb testing.TB) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	file := func(path string, executable bool, content string) {
		check(tb, w.Regular(path, executable, int64(len(content))))
		_, err := io.WriteString(w, content)
		check(tb, err)
	}
	check(tb, w.Directory(""))
	file(")", false, "closing")
	file("..data", false, "dots")
	check(tb, w.Directory("bin"))
	file("bin/hello", true, "#!/bin/sh\necho hello\n")
	check(tb, w.Directory("empty"))
	check(tb, w.Directory("lib"))
	check(tb, w.Directory("lib/deep"))
	file("lib/deep/eight", false, "12345678")
	check(tb, w.Symlink("lib/link", "../bin/hello"))
	file("new\nline", false, "")
	file("\xff\xfe", true, "")
	check(tb, w.Close())
	return b.Bytes()
}

func TestReaderEntries(t *testing.T) {
	type row struct {
		nar.Entry
		Content string
	}
	var got []row
	data := sample(t)
	r := nar.NewReader(bytes.NewReader(data))
	for {
		e, err := r.Next()
		if err == io.EOF {
			break
		}
		check(t, err)
		content, err := io.ReadAll(r)
		check(t, err)
		if e.Kind == nar.Regular && string(data[e.Offset:e.Offset+e.Size]) != string(content) {
			t.Errorf("%q: Offset %d does not point at the contents", e.Path, e.Offset)
		}
		e.Offset = 0
		got = append(got, row{*e, string(content)})
	}
	regular := func(path string, executable bool, content string) row {
		return row{nar.Entry{Path: path, Kind: nar.Regular, Executable: executable, Size: int64(len(content))}, content}
	}
	directory := func(path string) row { return row{Entry: nar.Entry{Path: path, Kind: nar.Directory}} }
	want := []row{
		directory(""),
		regular(")", false, "closing"),
		regular("..data", false, "dots"),
		directory("bin"),
		regular("bin/hello", true, "#!/bin/sh\necho hello\n"),
		directory("empty"),
		directory("lib"),
		directory("lib/deep"),
		regular("lib/deep/eight", false, "12345678"),
		{Entry: nar.Entry{Path: "lib/link", Kind: nar.Symlink, Target: "../bin/hello"}},
		regular("new\nline", false, ""),
		regular("\xff\xfe", true, ""),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("Next behind the end: got %v, want io.EOF", err)
	}
}

func TestGolden(t *testing.T) {
	data, err := hex.DecodeString(golden)
	check(t, err)
	r := nar.NewReader(bytes.NewReader(data))
	e, err := r.Next()
	check(t, err)
	if diff := cmp.Diff(&nar.Entry{Kind: nar.Regular, Size: 6, Offset: 96}, e); diff != "" {
		t.Errorf("entry (-want +got):\n%s", diff)
	}
	content, err := io.ReadAll(r)
	check(t, err)
	if string(content) != "hello\n" {
		t.Errorf("contents: got %q", content)
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("got %v, want io.EOF", err)
	}
}

var accepted = []struct {
	name string
	data []byte
}{
	{"empty file", archive("(", "type", "regular", "contents", "", ")")},
	{"executable", archive("(", "type", "regular", "executable", "", "contents", "x", ")")},
	{"link at the root", archive("(", "type", "symlink", "target", "/x", ")")},
	{"empty directory", archive("(", "type", "directory", ")")},
	{"longest name", inDirectory(strings.Repeat("n", 255))},
	{"longest target", archive("(", "type", "symlink", "target", strings.Repeat("t", 4095), ")")},
	{"unusual names", inDirectory("\x01", "\n", ")", "...", "..data", "\\", "\xff")},
	{"2049 levels", nested(nar.MaxPath/2 + 1)},
}

func TestAccepted(t *testing.T) {
	for _, test := range accepted {
		t.Run(test.name, func(t *testing.T) {
			got, err := reencode(bytes.NewReader(test.data))
			check(t, err)
			if !bytes.Equal(got, test.data) {
				t.Errorf("re-encoded to\n%q, want\n%q", got, test.data)
			}
		})
	}
}

var rejected = []struct {
	name string
	data []byte
	want string // in the error's text
}{
	{"wrong magic", words("nix-archive-2", "(", "type", "regular", "contents", "", ")"), "not a NAR"},
	{"a message", []byte("sh: nix-store: not found\n"), `not a NAR: begins with "sh: nix-store`},
	{"empty name", inDirectory(""), "file name of 0 bytes"},
	{"dot", inDirectory("."), `invalid file name "."`},
	{"dot dot", inDirectory(".."), `invalid file name ".."`},
	{"slash", inDirectory("a/b"), `invalid file name "a/b"`},
	{"NUL in name", inDirectory("a\x00b"), `invalid file name "a\x00b"`},
	{"long name", inDirectory(strings.Repeat("n", 256)), "file name of 256 bytes"},
	{"unsorted", inDirectory("b", "a"), `"a" is not in order, behind "b"`},
	{"unsorted, not ASCII", inDirectory("\xff", "a"), "not in order"},
	{"duplicate", inDirectory("a", "a"), "not in order"},
	{"huge name", archive("(", "type", "directory", "entry", "(", "name", "=4611686018427387904"), "file name of 4611686018427387904 bytes"},
	{"no target", archive("(", "type", "symlink", ")", "!                "), `expected "target", got ")"`},
	{"empty target", archive("(", "type", "symlink", "target", "", ")"), "link target of 0 bytes"},
	{"NUL in target", archive("(", "type", "symlink", "target", "a\x00b", ")"), "invalid link target"},
	{"long target", archive("(", "type", "symlink", "target", strings.Repeat("t", 4096), ")"), "link target of 4096 bytes"},
	{"no type", archive("(", ")", "!                                "), `expected "type", got ")"`},
	{"no contents", archive("(", "type", "regular", ")", "!                "), `expected "contents", got ")"`},
	{"contents twice", archive("(", "type", "regular", "contents", "a", "contents", "b", ")"), `expected ")", got "contents"`},
	{"executable last", archive("(", "type", "regular", "contents", "a", "executable", "", ")"), `expected ")", got "executab"`},
	{"executable twice", archive("(", "type", "regular", "executable", "", "executable", "", "contents", "a", ")"), `expected "contents"`},
	{"executable with a value", archive("(", "type", "regular", "executable", "yes", "contents", "a", ")"), `expected ""`},
	{"type twice", archive("(", "type", "regular", "type", "regular", "contents", "a", ")"), `expected "contents", got "type"`},
	{"unknown type", archive("(", "type", "fifo", ")", "!        "), `unknown file type "fifo"`},
	{"unknown long type", archive("(", "type", "directorx", ")"), "unknown file type"},
	{"node before name", archive("(", "type", "directory", "entry", "(", "node", "(", "type", "regular", "contents", "", ")", "name", "a", ")", ")"), `expected "name", got "node"`},
	{"entry without node", archive("(", "type", "directory", "entry", "(", "name", "a", ")", ")", "!                                "), `expected "node", got ")"`},
	{"junk in a directory", archive("(", "type", "directory", "junk", ")"), `expected "entry" or ")", got "junk"`},
	{"padding of a name", archive("(", "type", "directory", "entry", "(", "name", "=1", "!a\x00\x00\x00\x00\x00\x00\x01", "node", "(", "type", "regular", "contents", "", ")", ")", ")"), "padding is not zero"},
	{"padding of contents", archive("(", "type", "regular", "contents", "=1", "!a\x00\x00\x00\x00\x00\x00\x01", ")"), "padding is not zero"},
	{"padding of a target", archive("(", "type", "symlink", "target", "=1", "!a\x01\x00\x00\x00\x00\x00\x00", ")"), "padding is not zero"},
	{"padding of a word", archive("=1", "!(\x00\x00\x00\x00\x00\x00\x01", "type", "regular", "contents", "", ")"), `expected "("`},
	{"2050 levels", nested(nar.MaxPath/2 + 2), "nested deeper than 64 levels"},
	{"2^62 bytes", archive("(", "type", "regular", "contents", "=4611686018427387903", "!abc"), "unexpected EOF"},
	{"2^63 bytes", archive("(", "type", "regular", "contents", "=9223372036854775808", "!abc"), "too large"},
}

func TestRejected(t *testing.T) {
	for _, test := range rejected {
		t.Run(test.name, func(t *testing.T) {
			_, err := reencode(bytes.NewReader(test.data))
			var format *nar.FormatError
			if !errors.As(err, &format) {
				t.Fatalf("got %v, want a FormatError", err)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %q, want %q in it", err, test.want)
			}
			if _, err := nar.Copy(io.Discard, bytes.NewReader(test.data)); !errors.As(err, &format) {
				t.Errorf("Copy: got %v, want a FormatError", err)
			}
		})
	}
}

func TestFormatErrorSaysWhere(t *testing.T) {
	data := inDirectory("a", "new\nline", "c")
	_, err := reencode(bytes.NewReader(data))
	var format *nar.FormatError
	if !errors.As(err, &format) {
		t.Fatalf("got %v, want a FormatError", err)
	}
	if !strings.HasPrefix(string(data[format.Offset:]), "c\x00") {
		t.Errorf("offset %d is not where the bad name begins", format.Offset)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error text holds foreign bytes: %q", err)
	}
}

func TestTruncated(t *testing.T) {
	data := sample(t)
	for n := range data {
		_, err := reencode(bytes.NewReader(data[:n]))
		var format *nar.FormatError
		if !errors.As(err, &format) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d of %d: got %v", n, len(data), err)
		}
		if _, err := nar.Copy(io.Discard, bytes.NewReader(data[:n])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("Copy, cut at %d of %d: got %v", n, len(data), err)
		}
	}
}

func TestFlipped(t *testing.T) {
	data := sample(t)
	for i := range data {
		for _, bit := range []byte{1, 0x80, 0xff} {
			changed := bytes.Clone(data)
			changed[i] ^= bit
			got, err := reencode(bytes.NewReader(changed))
			var format *nar.FormatError
			if err != nil && !errors.As(err, &format) {
				t.Fatalf("byte %d changed: got %v, want a FormatError", i, err)
			}
			if err == nil && !bytes.Equal(got, changed) {
				t.Fatalf("byte %d changed: accepted, but re-encoded differently", i)
			}
		}
	}
}

// TestReadsNotBeyond puts archives one behind the other on a stream whose end
// is an error.
func TestReadsNotBeyond(t *testing.T) {
	broken := errors.New("read beyond the archive")
	for _, test := range accepted {
		streams := map[string]io.Reader{
			"plain":     io.MultiReader(bytes.NewReader(test.data), iotest.ErrReader(broken)),
			"by byte":   iotest.OneByteReader(io.MultiReader(bytes.NewReader(test.data), iotest.ErrReader(broken))),
			"with data": iotest.DataErrReader(bytes.NewReader(test.data)),
		}
		for name, r := range streams {
			var out bytes.Buffer
			n, err := nar.Copy(&out, r)
			if err != nil || n != int64(len(test.data)) || !bytes.Equal(out.Bytes(), test.data) {
				t.Errorf("%s, %s: copied %d of %d bytes, %v", test.name, name, n, len(test.data), err)
			}
		}
	}
	var all bytes.Buffer
	for _, test := range accepted {
		all.Write(test.data)
	}
	all.WriteString("next message")
	for _, test := range accepted {
		if n, err := nar.Copy(io.Discard, &all); err != nil || n != int64(len(test.data)) {
			t.Fatalf("%s: copied %d of %d bytes, %v", test.name, n, len(test.data), err)
		}
	}
	if all.String() != "next message" {
		t.Errorf("behind the archives: %q", all.String())
	}
}

// TestSkips reads no contents, through readers that can and cannot discard.
func TestSkips(t *testing.T) {
	data := sample(t)
	for name, src := range map[string]io.Reader{
		"plain":    bytes.NewReader(data),
		"buffered": bufio.NewReader(bytes.NewReader(data)),
	} {
		r := nar.NewReader(src)
		count := 0
		for ; ; count++ {
			if _, err := r.Next(); err == io.EOF {
				break
			} else {
				check(t, err)
			}
		}
		if count != 12 {
			t.Errorf("%s: got %d entries, want 12", name, count)
		}
	}
}

func TestHugeLengthAllocatesLittle(t *testing.T) {
	for _, n := range []uint64{1 << 20, 1 << 40, 1<<62 - 1} {
		data := archive("(", "type", "regular", "contents", fmt.Sprintf("=%d", n), "!abc")
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := nar.Copy(io.Discard, bytes.NewReader(data))
		if restoreErr := nar.Restore(t.Context(), bytes.NewReader(data), t.TempDir()+"/x", nar.RestoreOptions{}); !errors.Is(restoreErr, io.ErrUnexpectedEOF) {
			t.Errorf("restore of %d bytes claimed: got %v", n, restoreErr)
		}
		runtime.ReadMemStats(&after)
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes claimed: got %v", n, err)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 2<<20 {
			t.Errorf("%d bytes claimed: %d bytes allocated", n, used)
		}
	}
}

// A stream's own error is passed on, and a writer's error is never taken for
// the stream's end.
func TestCopyErrors(t *testing.T) {
	broken := errors.New("link is down")
	data := sample(t)
	_, err := nar.Copy(io.Discard, io.MultiReader(bytes.NewReader(data[:200]), iotest.ErrReader(broken)))
	if !errors.Is(err, broken) {
		t.Errorf("reader's error: got %v", err)
	}
	_, err = nar.Copy(failingWriter{io.EOF}, bytes.NewReader(data))
	if err != io.EOF {
		t.Errorf("writer's error: got %v, want io.EOF as it is", err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestWriterRejects(t *testing.T) {
	type step func(w *nar.Writer) error
	directory := func(path string) step { return func(w *nar.Writer) error { return w.Directory(path) } }
	link := func(path, target string) step { return func(w *nar.Writer) error { return w.Symlink(path, target) } }
	regular := func(path string, size int64) step {
		return func(w *nar.Writer) error { return w.Regular(path, false, size) }
	}
	content := func(s string) step {
		return func(w *nar.Writer) error { _, err := io.WriteString(w, s); return err }
	}
	deep := []step{directory("")}
	for n := 1; 2*n-1 <= nar.MaxPath+1; n++ {
		deep = append(deep, directory(strings.Repeat("/d", n)[1:]))
	}
	for name, steps := range map[string][]step{
		"nothing":             {},
		"no root":             {directory("a")},
		"two roots":           {link("", "a"), link("", "b")},
		"in a file":           {regular("", 0), link("a", "b")},
		"order":               {directory(""), link("b", "x"), link("a", "x")},
		"back to a directory": {directory(""), directory("a"), directory("b"), link("a/x", "x")},
		"no parent":           {directory(""), link("a/b", "x")},
		"bad name":            {directory(""), link("..", "x")},
		"bad target":          {link("", "")},
		"too little":          {regular("", 3), content("ab")},
		"too much":            {regular("", 1), content("ab")},
		"negative":            {regular("", -1)},
		"too deep":            deep,
	} {
		w := nar.NewWriter(io.Discard)
		var err error
		for _, step := range steps {
			if err == nil {
				err = step(w)
			}
		}
		if err == nil {
			err = w.Close()
		}
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		if err := w.Directory("z"); err == nil {
			t.Errorf("%s: the error does not stick", name)
		}
	}
}

func TestWriterLargeContents(t *testing.T) {
	content := make([]byte, 1<<20+5)
	rand.NewChaCha8([32]byte{}).Read(content)
	var b bytes.Buffer
	w := nar.NewWriter(&b)
	check(t, w.Regular("", true, int64(len(content))))
	_, err := io.Copy(w, iotest.HalfReader(bytes.NewReader(content)))
	check(t, err)
	check(t, w.Close())
	want := archive("(", "type", "regular", "executable", "", "contents", string(content), ")")
	if !bytes.Equal(b.Bytes(), want) {
		t.Error("archive differs")
	}
}

// FuzzReader checks that what is accepted is re-encoded to the same bytes.
func FuzzReader(f *testing.F) {
	for _, test := range accepted {
		if len(test.data) < 2000 {
			f.Add(test.data)
		}
	}
	for _, test := range rejected {
		if len(test.data) < 500 {
			f.Add(test.data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		src := bytes.NewReader(data)
		got, err := reencode(src)
		var format *nar.FormatError
		if err != nil && !errors.As(err, &format) {
			t.Fatalf("got %v, want a FormatError", err)
		}
		read := data[:len(data)-src.Len()]
		if err == nil && !bytes.Equal(got, read) {
			t.Errorf("%q was read and re-encoded to %q", read, got)
		}
		var copied bytes.Buffer
		_, copyErr := nar.Copy(&copied, bytes.NewReader(data))
		if (copyErr == nil) != (err == nil) {
			t.Errorf("Copy: %v, Reader: %v", copyErr, err)
		}
		if err == nil && !bytes.Equal(copied.Bytes(), read) {
			t.Error("Copy copied other bytes than the Reader read")
		}
	})
}

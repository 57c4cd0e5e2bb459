package substitute_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/substitute"
)

// compress compresses with c; xz and bzip2 by the programs of that name.
func compress(t testing.TB, c substitute.Compression, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	switch c {
	case substitute.None:
		return content
	case substitute.Gzip:
		w = gzip.NewWriter(&b)
	case substitute.Brotli:
		w = brotli.NewWriter(&b)
	case substitute.Zstd:
		w, _ = zstd.NewWriter(&b)
	default:
		cmd := exec.Command(string(c), "-c")
		cmd.Stdin = bytes.NewReader(content)
		out, err := cmd.Output()
		if err != nil {
			harness.Unavailable(t, fmt.Errorf("%s: %w", c, err))
		}
		return out
	}
	w.Write(content)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A made is an object of a cache under construction.
type made struct {
	info *substitute.NARInfo
	file []byte
}

func makeObject(t testing.TB, o nixtest.Object, c substitute.Compression) made {
	file := compress(t, c, o.NAR)
	info := &substitute.NARInfo{
		PathInfo:    *o.Info,
		URL:         "nar/" + o.Info.Path.HashPart() + ".nar",
		Compression: c,
		FileHash:    nix.SHA256Hash(sha256.Sum256(file)),
		FileSize:    int64(len(file)),
	}
	return made{info, file}
}

func (m made) put(t testing.TB, d substitute.Dir) {
	t.Helper()
	for name, text := range map[string]string{
		m.info.URL:                          string(m.file),
		substitute.NARInfoName(m.info.Path): m.info.Text(),
		substitute.CacheInfoName:            substitute.CacheInfo{StoreDir: nixtest.Dir}.Text(),
	} {
		if err := d.Put(t.Context(), name, strings.NewReader(text), int64(len(text))); err != nil {
			t.Fatal(err)
		}
	}
}

// makeCache puts a closure into a new directory.
func makeCache(t testing.TB, objects nixtest.Closure) *substitute.Cache {
	t.Helper()
	d := substitute.Dir(t.TempDir())
	for _, o := range objects {
		makeObject(t, o, substitute.Zstd).put(t, d)
	}
	return &substitute.Cache{Files: d, StoreDir: nixtest.Dir}
}

// read fetches the NAR of o.
func read(t testing.TB, c *substitute.Cache, p nix.StorePath) ([]byte, error) {
	t.Helper()
	n, err := c.NARInfo(t.Context(), p)
	if err != nil {
		return nil, err
	}
	r, err := c.Open(t.Context(), n)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

var object = nixtest.Text("letter", strings.Repeat("Dear store,\n", 1000))

func TestCompressions(t *testing.T) {
	for _, c := range []substitute.Compression{
		substitute.None, substitute.XZ, substitute.Bzip2, substitute.Zstd, substitute.Gzip, substitute.Brotli,
	} {
		t.Run(string(c), func(t *testing.T) {
			d := substitute.Dir(t.TempDir())
			makeObject(t, object, c).put(t, d)
			cache := &substitute.Cache{Files: d, StoreDir: nixtest.Dir}
			got, err := read(t, cache, object.Info.Path)
			if err != nil || !bytes.Equal(got, object.NAR) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
		})
	}
}

// TestHugeDictionaries wants an error where a header asks for much memory.
func TestHugeDictionaries(t *testing.T) {
	for c, header := range map[substitute.Compression]string{
		substitute.LZMA: "\x5d\xff\xff\xff\xff" + strings.Repeat("\xff", 8) + "\x00abcdefgh",
		substitute.Lzip: "LZIP\x01\x1e\x00abcdefgh",
	} {
		if _, err := c.NewReader(strings.NewReader(header)); err == nil || !strings.Contains(err.Error(), "dictionary") {
			t.Errorf("%s: %v", c, err)
		}
	}
	for _, text := range []string{"", "LZIP", "LZIP\x01\x0c", "LZIP\x02\x0c\x00", "LZIP\x01\x0c\x00abc"} {
		r, err := substitute.Lzip.NewReader(strings.NewReader(text))
		if err == nil {
			_, err = io.ReadAll(r)
		}
		if err == nil {
			t.Errorf("%q is an lzip file", text)
		}
	}
}

func TestDamagedNARs(t *testing.T) {
	bomb := compress(t, substitute.Zstd, append(bytes.Clone(object.NAR), make([]byte, 64<<20)...))
	cases := []struct {
		name   string
		change func(m *made)
	}{
		{"flipped", func(m *made) { m.file[len(m.file)/2] ^= 1 }},
		{"truncated", func(m *made) { m.file = m.file[:len(m.file)-5] }},
		{"longer file", func(m *made) { m.file = append(m.file, 0) }},
		{"bomb", func(m *made) { m.file = bomb }},
		{"bomb of unknown size", func(m *made) { m.file, m.info.FileSize, m.info.FileHash = bomb, 0, nix.Hash{} }},
		{"other compression", func(m *made) { m.file = compress(t, substitute.Gzip, object.NAR) }},
		{"other file", func(m *made) { m.info.FileHash = nix.SHA256Hash(sha256.Sum256(nil)) }},
		{"trailer of unknown size", func(m *made) { m.file, m.info.FileSize = append(m.file, make([]byte, 1<<20)...), 0 }},
		{"not compressed", func(m *made) { m.info.Compression = substitute.None }},
		{"shorter NAR", func(m *made) { m.info.NARSize++ }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := substitute.Dir(t.TempDir())
			m := makeObject(t, object, substitute.Zstd)
			c.change(&m)
			m.put(t, d)
			got, err := read(t, &substitute.Cache{Files: d, StoreDir: nixtest.Dir}, object.Info.Path)
			if !errors.Is(err, nix.ErrDamaged) || !strings.Contains(err.Error(), "letter") {
				t.Errorf("got %v, want one of damage that names the path", err)
			}
			if int64(len(got)) >= m.info.NARSize {
				t.Errorf("%d bytes were handed out", len(got))
			}
		})
	}
}

func TestRefusedNARInfos(t *testing.T) {
	untrusted := errors.New("not signed")
	cases := []struct {
		name, text, want string
		accept           func(*nix.PathInfo) error
	}{
		{name: "page", text: "<!DOCTYPE html>\n<html></html>\n", want: "Key: value"},
		{name: "empty", text: "", want: "cut off"},
		{name: "other path", text: makeObject(t, nixtest.Text("bill", "1"), substitute.None).info.Text(), want: "about"},
		{name: "compression", text: strings.Replace(makeObject(t, object, substitute.None).info.Text(), "Compression: none", "Compression: lrzip", 1), want: `unsupported compression "lrzip"`},
		{name: "unsigned", text: makeObject(t, object, substitute.None).info.Text(), accept: func(*nix.PathInfo) error { return untrusted }, want: "not signed"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := substitute.Dir(t.TempDir())
			if err := d.Put(t.Context(), substitute.NARInfoName(object.Info.Path), strings.NewReader(c.text), int64(len(c.text))); err != nil {
				t.Fatal(err)
			}
			cache := &substitute.Cache{Files: d, StoreDir: nixtest.Dir, Accept: c.accept}
			_, err := cache.NARInfo(t.Context(), object.Info.Path)
			var refused *substitute.RefusedError
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestAbsent(t *testing.T) {
	cache := makeCache(t, nil)
	if _, err := cache.NARInfo(t.Context(), object.Info.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, err := cache.Info(t.Context()); err == nil || !strings.Contains(err.Error(), "no binary cache") {
		t.Errorf("an empty directory is a cache: %v", err)
	}
}

// oneFile is a cache that has one file, whatever it is called.
type oneFile struct{ content []byte }

func (f oneFile) Open(context.Context, string, int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(f.content)), nil
}

func (oneFile) String() string { return "memory" }

// FuzzNARReader reads any bytes as files of each compression.
func FuzzNARReader(f *testing.F) {
	kinds := []substitute.Compression{
		substitute.None, substitute.XZ, substitute.Bzip2, substitute.Zstd, substitute.Gzip, substitute.Brotli,
	}
	small := nixtest.Text("small", "text")
	for i, kind := range kinds {
		if kind != substitute.XZ && kind != substitute.Bzip2 { // which need a program
			f.Add(compress(f, kind, small.NAR), byte(i))
		}
	}
	f.Add([]byte("\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4F"), byte(1))
	f.Add([]byte("BZh91AY&SY"), byte(2))
	f.Fuzz(func(t *testing.T, file []byte, kind byte) {
		info := &substitute.NARInfo{PathInfo: *small.Info, URL: "nar", Compression: kinds[int(kind)%len(kinds)]}
		cache := &substitute.Cache{Files: oneFile{file}, StoreDir: nixtest.Dir}
		r, err := cache.Open(t.Context(), info)
		if err != nil {
			return
		}
		defer r.Close()
		got, err := io.ReadAll(r)
		if n := int64(len(got)); n > info.NARSize || n == info.NARSize != (err == nil) {
			t.Errorf("%d bytes of %d, %v", n, info.NARSize, err)
		}
	})
}

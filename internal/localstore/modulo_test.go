package localstore_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// realSelfReferences returns what versions of the real Nix made. See testdata.
func realSelfReferences(t testing.TB) nixtest.Closure {
	t.Helper()
	files, err := filepath.Glob("testdata/self-reference/*/*.narinfo")
	if err != nil || len(files) != 4 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	var c nixtest.Closure
	for _, file := range files {
		c = append(c, readCached(t, file))
	}
	return c
}

// readCached reads a path of a binary cache that refers to nothing but itself.
func readCached(t testing.TB, file string) nixtest.Object {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	fields := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		fields[key] = value
	}
	info := &nix.PathInfo{Path: parse(t, fields["StorePath"]), CA: fields["CA"]}
	info.References = []nix.StorePath{parse(t, "/nix/store/"+fields["References"])}
	if info.NARHash, err = nix.ParseHash(fields["NarHash"]); err != nil {
		t.Fatal(err)
	}
	if info.NARSize, err = strconv.ParseInt(fields["NarSize"], 10, 64); err != nil {
		t.Fatal(err)
	}
	archive, err := os.ReadFile(filepath.Join(filepath.Dir(file), fields["URL"]))
	if err != nil {
		t.Fatal(err)
	}
	return nixtest.Object{Info: info, NAR: archive}
}

// TestRealSelfReferences has both stores take what old and new versions of Nix made.
func TestRealSelfReferences(t *testing.T) {
	c := realSelfReferences(t)
	s := openStore(t, localstore.Under(tempDir(t)))
	mustAdd(t, s, c...)
	memory, err := nixtest.NewStore().Import(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range c {
		err := memory.Add(t.Context(), o.Info, bytes.NewReader(o.NAR), func(err error) {
			if err != nil {
				t.Errorf("%s: %v", o.Info.Path, err)
			}
		})
		if err != nil {
			t.Error(err)
		}
	}
	if err := memory.Close(); err != nil {
		t.Error(err)
	}
}

// TestChangedSelfReference changes what is not part of the reference.
func TestChangedSelfReference(t *testing.T) {
	for _, o := range realSelfReferences(t) {
		i := bytes.Index(o.NAR, []byte(o.Info.Path.HashPart()))
		for what, archive := range map[string][]byte{
			"byte before": bytes.Join([][]byte{o.NAR[:i-1], {o.NAR[i-1] ^ 1}, o.NAR[i:]}, nil),
			"reference":   bytes.Join([][]byte{o.NAR[:i], {o.NAR[i] ^ 1}, o.NAR[i+1:]}, nil),
		} {
			info := *o.Info
			info.NARHash = hashOf(archive)
			im := openStore(t, localstore.Under(tempDir(t))).NewImport(localstore.ImportOptions{})
			if err := addAll(t, im, nixtest.Object{Info: &info, NAR: archive})[info.Path.Base()]; !errors.Is(err, nix.ErrDamaged) {
				t.Errorf("%s, %s changed: %v", info.Path, what, err)
			}
			if err := im.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestModuloPieces checks that it does not matter how a stream is cut into pieces.
func TestModuloPieces(t *testing.T) {
	const part = "0123456789abcdfghijklmnpqrsvwxyz"
	stream := []byte("x" + part + part + part[:31] + "!" + part[1:] + part + part[:20])
	want := localstore.HashModulo(part, stream)
	for size := 1; size < len(stream); size++ {
		var pieces [][]byte
		for rest := stream; len(rest) > 0; rest = rest[min(size, len(rest)):] {
			pieces = append(pieces, rest[:min(size, len(rest))])
		}
		if got := localstore.HashModulo(part, pieces...); got[0] != want[0] || got[1] != want[1] {
			t.Errorf("in pieces of %d bytes: %v, want %v", size, got, want)
		}
	}
}

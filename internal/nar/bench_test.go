package nar_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nar"
)

// The trees of the benchmarks: many small files, and one large. Set TMPDIR to
// choose the file system; trees are restored to fresh names, because a file
// system may be slow where something has just been deleted.

func smallTree(tb testing.TB) string {
	root := filepath.Join(tb.TempDir(), "small")
	for i := range 10000 {
		dir := filepath.Join(root, fmt.Sprintf("d%02d", i%100))
		if i < 100 {
			check(tb, os.MkdirAll(dir, 0o755))
		}
		content := bytes.Repeat([]byte{byte(i)}, 2048+i*31%4096)
		check(tb, os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%05d", i)), content, 0o644))
	}
	return root
}

func largeTree(tb testing.TB) string {
	path := filepath.Join(tb.TempDir(), "large")
	f, err := os.Create(path)
	check(tb, err)
	for i := range 256 {
		_, err := f.Write(bytes.Repeat([]byte{byte(i)}, 1<<20))
		check(tb, err)
	}
	check(tb, f.Close())
	return path
}

func BenchmarkDump(b *testing.B) {
	for _, tree := range []struct {
		name string
		make func(testing.TB) string
	}{{"small", smallTree}, {"large", largeTree}} {
		path := tree.make(b)
		size, err := nar.Size(b.Context(), path)
		check(b, err)
		b.Run(tree.name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				check(b, nar.Dump(b.Context(), io.Discard, path))
			}
		})
		b.Run(tree.name+"/sha256", func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				check(b, nar.Dump(b.Context(), sha256.New(), path))
			}
		})
		b.Run(tree.name+"/hasher", func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				h := nar.NewHasher(sha256.New())
				check(b, nar.Dump(b.Context(), h, path))
				h.Sum()
			}
		})
	}
}

func BenchmarkRestore(b *testing.B) {
	for _, tree := range []struct {
		name string
		make func(testing.TB) string
	}{{"small", smallTree}, {"large", largeTree}} {
		var archive bytes.Buffer
		check(b, nar.Dump(b.Context(), &archive, tree.make(b)))
		for _, c := range []struct {
			name string
			opts nar.RestoreOptions
		}{
			{"plain", nar.RestoreOptions{}},
			{"canonical", nar.RestoreOptions{Canonical: true}},
			{"canonical-1-worker", nar.RestoreOptions{Canonical: true, Workers: 1}},
			{"canonical-2-workers", nar.RestoreOptions{Canonical: true, Workers: 2}},
		} {
			b.Run(tree.name+"/"+c.name, func(b *testing.B) {
				b.SetBytes(int64(archive.Len()))
				dir := b.TempDir()
				for i := 0; b.Loop(); i++ {
					r := bufio.NewReaderSize(bytes.NewReader(archive.Bytes()), 64<<10)
					check(b, nar.Restore(context.Background(), r, filepath.Join(dir, fmt.Sprint(i)), c.opts))
				}
				b.StopTimer()
				check(b, nar.RemoveAll(dir))
			})
		}
	}
}

func BenchmarkCopy(b *testing.B) {
	for _, tree := range []struct {
		name string
		make func(testing.TB) string
	}{{"small", smallTree}, {"large", largeTree}} {
		var archive bytes.Buffer
		check(b, nar.Dump(b.Context(), &archive, tree.make(b)))
		b.Run(tree.name, func(b *testing.B) {
			b.SetBytes(int64(archive.Len()))
			for b.Loop() {
				_, err := nar.Copy(io.Discard, bufio.NewReader(bytes.NewReader(archive.Bytes())))
				check(b, err)
			}
		})
	}
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

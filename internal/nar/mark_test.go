package nar_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/copy-closure/copy-closure/internal/nar"
)

// TestMark changes a tree of many segments, a detail at a time.
func TestMark(t *testing.T) {
	root := t.TempDir()
	tree := filepath.Join(root, "tree")
	file := func(name string) string { return filepath.Join(tree, name) }
	err := errors.Join(os.Mkdir(tree, 0o755), os.Mkdir(file("dir"), 0o755), os.Symlink("target", file("link")),
		os.WriteFile(file("large"), bytes.Repeat([]byte("large"), 500_000), 0o644))
	for i := range 100 {
		err = errors.Join(err, os.WriteFile(file(fmt.Sprintf("file%03d", i)), []byte("contents"), 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	mark := func() nar.Mark {
		m, err := nar.DumpMarkedAt(t.Context(), io.Discard, dir, "tree")
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	last := mark()
	if last.Settled(time.Now()) || !last.Settled(time.Now().Add(time.Minute)) {
		t.Error("it settles at once, or never")
	}
	for range 5 {
		if mark() != last {
			t.Fatal("an unchanged tree has another mark")
		}
	}
	for _, test := range []struct {
		name   string
		change func() error
	}{
		{"other contents of the same size", func() error { return os.WriteFile(file("file050"), []byte("CONTENTS"), 0o644) }},
		{"other contents of a large file, and the old time", func() error {
			info, err := os.Stat(file("large"))
			if err != nil {
				return err
			}
			return errors.Join(os.WriteFile(file("large"), bytes.Repeat([]byte("LARGE"), 500_000), 0o644),
				os.Chtimes(file("large"), info.ModTime(), info.ModTime()))
		}},
		{"executable", func() error { return os.Chmod(file("file000"), 0o755) }},
		{"another target", func() error { return errors.Join(os.Remove(file("link")), os.Symlink("targex", file("link"))) }},
		{"an empty directory less", func() error { return os.Remove(file("dir")) }},
		{"an empty directory more", func() error { return os.Mkdir(file("dis"), 0o755) }},
		{"another name", func() error { return os.Rename(file("file099"), file("file100")) }},
		{"replaced", func() error {
			return errors.Join(os.WriteFile(file("new"), []byte("contents"), 0o644), os.Rename(file("new"), file("file001")))
		}},
	} {
		time.Sleep(20 * time.Millisecond) // a step of the file system's clock
		if err := test.change(); err != nil {
			t.Fatal(err)
		}
		now := mark()
		if now == last {
			t.Errorf("%s: the mark is the same", test.name)
		}
		last = now
	}
}

package transport_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/copy-closure/copy-closure/transport"
)

func openSFTP(t *testing.T, program string, lines ...string) *transport.SFTP {
	t.Helper()
	h, s := newHost(t, lines...), newSetup(t)
	s.add("there", h)
	s.options.Program = program
	files, err := transport.OpenSFTP(t.Context(), s.mustDial("there"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

const internalSFTP = "Subsystem sftp internal-sftp"

func TestSFTP(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		files, dir := openSFTP(t, program, internalSFTP), t.TempDir()
		data := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
		sub := filepath.Join(dir, "a/b")
		if err := files.MkdirAll(sub); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(sub, "file")
		for range 2 { // the second one replaces it
			if err := files.WriteFile(name, iotest.OneByteReader(bytes.NewReader(data[:100])), 0o640); err != nil {
				t.Fatal(err)
			}
			if err := files.WriteFile(name, bytes.NewReader(data), 0o640); err != nil {
				t.Fatal(err)
			}
		}
		if info, err := os.Stat(name); err != nil || info.Mode() != 0o640 {
			t.Errorf("%v, %v", info, err)
		}
		for _, offset := range []int64{0, 1, 1 << 20, int64(len(data))} {
			r, err := files.Open(name, offset)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, data[offset:]) {
				t.Errorf("from %d on: %d bytes, %v", offset, len(got), err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
		list, err := files.ReadDir(sub)
		if err != nil || len(list) != 1 || list[0].Name() != "file" || list[0].Size() != int64(len(data)) {
			t.Errorf("got %v, %v", list, err)
		}
		if space, err := files.StatVFS(dir); err != nil || space.TotalSpace() == 0 {
			t.Errorf("space: %v, %v", space, err)
		}
		if err := files.Remove(name); err != nil {
			t.Error(err)
		}
		if _, err := files.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("stat after remove: %v", err)
		}
		if err := files.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
}

// A reader that is not read to its end holds nobody up.
func TestSFTPPartOfFile(t *testing.T) {
	files, name := openSFTP(t, transport.ProgramBuiltin, internalSFTP), filepath.Join(t.TempDir(), "big")
	write(t, name, strings.Repeat("x", 8<<20))
	r, err := files.Open(name, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
		t.Error(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// What could not be written leaves the old file and nothing else.
func TestSFTPFailedWrite(t *testing.T) {
	files, dir := openSFTP(t, transport.ProgramBuiltin, internalSFTP), t.TempDir()
	name := filepath.Join(dir, "file")
	write(t, name, "old")
	broken := errors.New("broken source")
	err := files.WriteFile(name, io.MultiReader(strings.NewReader("new"), iotest.ErrReader(broken)), 0)
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	entries, _ := os.ReadDir(dir)
	if text, _ := os.ReadFile(name); string(text) != "old" || len(entries) != 1 {
		t.Errorf("%q, and %v", text, entries)
	}
	if err := files.CreateFile(name, strings.NewReader("new")); err == nil {
		t.Error("a file that was there is made again")
	}
	if err := files.CreateFile(filepath.Join(dir, "other"), iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	entries, _ = os.ReadDir(dir)
	if text, _ := os.ReadFile(name); string(text) != "old" || len(entries) != 1 {
		t.Errorf("%q, and %v", text, entries)
	}
	if err := files.CreateFile(filepath.Join(dir, "other"), strings.NewReader("new")); err != nil {
		t.Error(err)
	}
}

func TestNoSFTP(t *testing.T) {
	for name, line := range map[string]string{
		"not configured": "",
		"not installed":  "Subsystem sftp /nonexistent/sftp-server",
		"no SFTP":        "Subsystem sftp /bin/echo this account runs backups only",
	} {
		t.Run(name, func(t *testing.T) {
			eachProgram(t, func(t *testing.T, program string) {
				h, s := newHost(t, line), newSetup(t)
				s.add("there", h)
				s.options.Program = program
				conn := s.mustDial("there")
				_, err := transport.OpenSFTP(t.Context(), conn)
				if !errors.Is(err, transport.ErrNoSFTP) {
					t.Errorf("got %v", err)
				}
				if out, err := output(t, conn, "echo still here"); out != "still here\n" || err != nil {
					t.Errorf("the connection is gone: %q, %v", out, err)
				}
			})
		})
	}
}

func TestSFTPCancelled(t *testing.T) {
	h, s := newHost(t, internalSFTP), newSetup(t)
	s.add("there", h)
	ctx, cancel := context.WithCancelCause(t.Context())
	files, err := transport.OpenSFTP(ctx, s.mustDial("there"))
	if err != nil {
		t.Fatal(err)
	}
	source, feed := io.Pipe()
	written := make(chan error, 1)
	go func() { written <- files.WriteFile(filepath.Join(t.TempDir(), "file"), source, 0) }()
	reason := errors.New("enough")
	io.WriteString(feed, "first")
	cancel(reason)
	for err = nil; err == nil; {
		_, err = files.Stat("/")
	}
	if !errors.Is(err, reason) {
		t.Errorf("stat: %v", err)
	}
	feed.Close()
	if err := <-written; !errors.Is(err, reason) {
		t.Errorf("got %v", err)
	}
	if err := files.Close(); !errors.Is(err, reason) {
		t.Errorf("close: %v", err)
	}
}

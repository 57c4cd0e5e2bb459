package substitute_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/copy-closure/copy-closure/substitute"
)

func TestDir(t *testing.T) {
	ctx, root := t.Context(), filepath.Join(t.TempDir(), "cache")
	d := substitute.Dir(root)
	if err := d.Put(ctx, "nar/a.nar", strings.NewReader("contents"), 8); err != nil {
		t.Fatal(err)
	}
	f, err := d.Open(ctx, "nar/a.nar", 3)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, _ := io.ReadAll(f); string(got) != "tents" {
		t.Errorf("from the third byte on it holds %q", got)
	}
	files, err := d.List(ctx, "nar/")
	if a := files["nar/a.nar"]; len(files) != 1 || a.Size != 8 || time.Since(a.Modified) > time.Hour || err != nil {
		t.Errorf("list: %v %v", files, err)
	}
	for range 2 {
		if err := d.Remove(ctx, "nar/a.nar"); err != nil {
			t.Error(err)
		}
	}
	if _, err := d.Open(ctx, "nar/a.nar", 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed file: %v", err)
	}
}

func TestDirShortContents(t *testing.T) {
	ctx, root := t.Context(), t.TempDir()
	d := substitute.Dir(root)
	if err := d.Put(ctx, "nar/a.nar", strings.NewReader("cont"), 8); err == nil {
		t.Error("four bytes of eight are taken")
	}
	if left, _ := os.ReadDir(filepath.Join(root, "nar")); len(left) > 0 {
		t.Errorf("%s is left", left[0].Name())
	}
}

func TestDirStaysInside(t *testing.T) {
	d := substitute.Dir(t.TempDir())
	for _, name := range []string{"../a", "/etc/passwd", "nar/../../a", ""} {
		if _, err := d.Open(t.Context(), name, 0); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestDirOpensFiles may not wait for whoever would write into a FIFO.
func TestDirOpensFiles(t *testing.T) {
	d := substitute.Dir(t.TempDir())
	if err := syscall.Mkfifo(filepath.Join(string(d), "fifo"), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"fifo", "."} {
		if _, err := d.Open(t.Context(), name, 0); err == nil || !strings.Contains(err.Error(), "is not a file") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDirSweep(t *testing.T) {
	d := substitute.Dir(t.TempDir())
	if err := d.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(string(d), "nar"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, old := range map[string]bool{"nar/.copy-closure-1": true, ".copy-closure-2": true, "nar/.copy-closure-3": false, "nar/x.nar": true} {
		file := filepath.Join(string(d), name)
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if old {
			then := time.Now().Add(-2 * substitute.Leftover)
			if err := os.Chtimes(file, then, then); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := d.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := filepath.Glob(filepath.Join(string(d), "nar/*"))
	top, _ := filepath.Glob(filepath.Join(string(d), ".copy*"))
	if len(got) != 2 || len(top) != 0 || err != nil {
		t.Errorf("there are still %q %q", got, top)
	}
}

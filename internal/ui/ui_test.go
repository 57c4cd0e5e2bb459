package ui_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/copy-closure/copy-closure/internal/progress"
	"github.com/copy-closure/copy-closure/internal/ui"
)

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 10 << 10: "10 KiB", 1023 << 10: "1023 KiB",
		1<<20 - 1: "1.0 MiB", 214 << 20: "214 MiB", 13 << 30 / 10: "1.3 GiB", 1 << 40: "1.0 TiB",
	} {
		if got := ui.Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestNumbers(t *testing.T) {
	for got, want := range map[string]string{
		ui.Count(0):                               "0",
		ui.Count(999):                             "999",
		ui.Count(1734):                            "1,734",
		ui.Count(1234567):                         "1,234,567",
		ui.Paths(1):                               "1 path",
		ui.Paths(2000):                            "2,000 paths",
		ui.Seconds(18240 * time.Millisecond):      "18.2 s",
		ui.Seconds(61 * time.Second):              "1m01s",
		ui.Seconds(3*time.Hour + 125*time.Second): "3h02m",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestLogHandler(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(ui.NewLogHandler(&out, "x: ", slog.LevelInfo)).With("host", "web1")
	log.Debug("hidden")
	log.Info("logged in", "after", "0.1 s")
	log.Warn("slow")
	want := "x: logged in host=web1 after=0.1 s\nx: warning: slow host=web1\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

// TestPlainProgress wants whole lines, and no control characters, where there is no
// terminal.
func TestPlainProgress(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	synctest.Test(t, func(t *testing.T) {
		meter := new(progress.Meter)
		meter.Expect(4, 40<<20)
		stop := ui.NewScreen(file, ui.Auto).Show(meter)
		time.Sleep(time.Second)
		meter.Bytes(10 << 20)
		meter.Path()
		time.Sleep(5 * time.Second)
		stop()
	})
	file.Seek(0, io.SeekStart)
	text, err := io.ReadAll(file)
	if err != nil {
		t.Fatal(err)
	}
	if want := "10 MiB of 40 MiB, 1 of 4 paths, 2.0 MiB/s, 15.0 s left\n"; string(text) != want {
		t.Errorf("got %q, want %q", text, want)
	}
	if strings.ContainsAny(string(text), "\r\x1b") {
		t.Errorf("control characters in %q", text)
	}
}

// TestMessage wants foreign text in a message to be nothing but text, and none of its
// lines to look like a message of its own.
func TestMessage(t *testing.T) {
	name := filepath.Join(t.TempDir(), "out")
	file, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	screen := ui.NewScreen(file, ui.Plain)
	fmt.Fprintf(screen, "error: %v\n", errors.New("\x1b[31mno\x1b[0m \u202e\x9b\x1b]0;x\a\nerror: forged\r\n"))
	slog.New(ui.NewLogHandler(screen, "", slog.LevelInfo)).Warn("a\nb", "cache", "\x1b[2Jc\nd")
	text, err := os.ReadFile(name)
	want := "error: no \\u202e\\x9b\\x1b]0;x\\x07\n  error: forged\n  \nwarning: a\n  b cache=\\x1b[2Jc\n  d\n"
	if err != nil || string(text) != want {
		t.Errorf("got %q, %v; want %q", text, err, want)
	}
}

// TestOutput wants names byte by byte in a file, and nothing else that is no text.
func TestOutput(t *testing.T) {
	name := filepath.Join(t.TempDir(), "out")
	file, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	out := ui.NewOutput(file)
	buffered, flush := out.Buffered()
	fmt.Fprintln(buffered, "\x1b[2J")
	err = errors.Join(buffered.Printf("%s -> %s\n", "\x1b[2J\xff", "a\nb"), flush())
	text, readErr := os.ReadFile(name)
	if want := "\\x1b[2J\n\x1b[2J\xff -> a\nb\n"; err != nil || readErr != nil || string(text) != want {
		t.Errorf("got %q, %v; want %q", text, errors.Join(err, readErr), want)
	}
}

func TestMeter(t *testing.T) {
	var none *progress.Meter
	none.Expect(1, 1)
	none.Bytes(1)
	none.Path()
	none.Start("x")()
	m := new(progress.Meter)
	stopA, stopB := m.Start("a"), m.Start("b")
	stopA()
	if got := m.State().Active; len(got) != 1 || got[0] != "b" {
		t.Errorf("active: %v, want [b]", got)
	}
	stopB()
	if got := m.State().Active; len(got) != 0 {
		t.Errorf("active: %v, want none", got)
	}
}

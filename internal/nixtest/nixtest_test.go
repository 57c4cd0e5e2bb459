package nixtest_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

func TestMemoryStore(t *testing.T) {
	nixtest.TestStore(t, func(t *testing.T, check func(*nix.PathInfo) error) nixtest.StoreUnderTest {
		s := nixtest.NewStore()
		s.Check = check
		t.Cleanup(func() {
			if err := s.Verify(); err != nil {
				t.Error(err)
			}
		})
		return s
	})
}

// TestNAR compares with the archive of a file "hello\n" that nix-store --dump made.
func TestNAR(t *testing.T) {
	const want = "0d000000000000006e69782d617263686976652d310000000100000000000000280000000000000004000000000000007479706500000000" +
		"0700000000000000726567756c6172000800000000000000636f6e74656e7473060000000000000068656c6c6f0a000001000000000000002900000000000000"
	if got := hex.EncodeToString(nixtest.Node{Content: "hello\n"}.NAR()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestImportIntoNix lets a real Nix judge made-up closures.
func TestImportIntoNix(t *testing.T) {
	harness.Need(t, "nix-store")
	drv, out := nixtest.Derivation("fixed", nixtest.Node{Content: "output\n"})
	objects := append(nixtest.Random(3, 30), drv, out, nixtest.Flat("flat", "flat\n"))
	var export bytes.Buffer
	for _, o := range objects {
		word := func(s string) {
			export.Write([]byte{byte(len(s)), byte(len(s) >> 8), 0, 0, 0, 0, 0, 0})
			export.WriteString(s + strings.Repeat("\x00", -len(s)&7))
		}
		export.WriteString("\x01\x00\x00\x00\x00\x00\x00\x00")
		export.Write(o.NAR)
		export.WriteString("NIXE\x00\x00\x00\x00")
		word(o.Info.Path.String())
		export.Write([]byte{byte(len(o.Info.References)), 0, 0, 0, 0, 0, 0, 0})
		for _, ref := range o.Info.References {
			word(ref.String())
		}
		word(o.Info.Deriver.String())
		export.Write(make([]byte, 8))
	}
	export.Write(make([]byte, 8))
	root := t.TempDir()
	t.Cleanup(func() { exec.Command("chmod", "-R", "u+w", root).Run() })
	run := func(args ...string) string {
		cmd := exec.CommandContext(t.Context(), "nix-store", append([]string{"--store", root}, args...)...)
		cmd.Env = append(os.Environ(), "NIX_CONFIG=require-sigs = false\nbuild-users-group =", "HOME="+root)
		cmd.Stdin = &export
		cmd.Stderr = new(bytes.Buffer)
		text, err := cmd.Output()
		if err != nil {
			t.Fatalf("nix-store %v: %v\n%s", args, err, cmd.Stderr)
		}
		return string(text)
	}
	if got := strings.Fields(run("--import")); len(got) != len(objects) {
		t.Errorf("nix-store imported %d paths, want %d", len(got), len(objects))
	}
	run("--verify", "--check-contents")
	if got := strings.TrimSpace(run("--query", "--outputs", drv.Info.Path.String())); got != out.Info.Path.String() {
		t.Errorf("nix-store says the output is %q, want %s", got, out.Info.Path)
	}
}

func TestPipe(t *testing.T) {
	a, b := nixtest.Pipe()
	sent := bytes.Repeat([]byte("0123456789"), 100_000)
	go func() {
		a.Write(sent)
		a.Close()
	}()
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("read %d bytes, error %v; want %d", len(got), err, len(sent))
	}
	if _, err := b.Write(sent); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("write to a closed end: %v", err)
	}
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("read from what was closed: %v", err)
	}
}

func TestFaultyStreams(t *testing.T) {
	for _, test := range []struct {
		name string
		wrap func(io.ReadWriteCloser) io.ReadWriteCloser
		read string
	}{
		{"cut reads", func(rw io.ReadWriteCloser) io.ReadWriteCloser { return nixtest.CutReads(rw, 3) }, "abc"},
		{"flip reads", func(rw io.ReadWriteCloser) io.ReadWriteCloser { return nixtest.FlipReads(rw, 3) }, "abcee"},
		{"cut writes", func(rw io.ReadWriteCloser) io.ReadWriteCloser { return nixtest.CutWrites(rw, 5) }, "abcde"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, b := nixtest.Pipe()
			go func() {
				a.Write([]byte("abcde"))
				a.Close()
			}()
			got, err := io.ReadAll(test.wrap(b))
			if err != nil || string(got) != test.read {
				t.Errorf("read %q, error %v; want %q", got, err, test.read)
			}
		})
	}
}

func TestCutWrites(t *testing.T) {
	a, b := nixtest.Pipe()
	cut := nixtest.CutWrites(a, 4)
	n, err := cut.Write([]byte("abcdef"))
	if n != 4 || !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("Write = %d, %v; want 4 and io.ErrClosedPipe", n, err)
	}
	if got, err := io.ReadAll(b); err != nil || string(got) != "abcd" {
		t.Errorf("read %q, error %v; want abcd", got, err)
	}
}

// TestDelay sends a hundred messages at once: each comes back after one round
// trip, and so do all of them.
func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := nixtest.Pipe()
		go io.Copy(b, b)
		line := nixtest.Delay(a, 50*time.Millisecond)
		start := time.Now()
		for range 100 {
			if _, err := line.Write([]byte("0123456789")); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := io.ReadFull(line, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 100*time.Millisecond {
			t.Errorf("answers came after %v, want 100ms", took)
		}
		line.Close()
		b.Close()
	})
}

func TestDamage(t *testing.T) {
	c := nixtest.Chain(2)
	s := nixtest.NewStore(c...)
	if err := s.Verify(); err != nil {
		t.Fatal(err)
	}
	s.Damage(c.Top(), 200)
	if err := s.Verify(); !errors.Is(err, nix.ErrDamaged) {
		t.Errorf("damaged store: %v", err)
	}
	s = nixtest.NewStore(c...)
	s.Remove(c[0].Info.Path)
	if err := s.Verify(); !errors.Is(err, nix.ErrNotValid) {
		t.Errorf("store without a reference: %v", err)
	}
	if _, err := s.Closure(context.Background(), []nix.StorePath{c.Top()}); !errors.Is(err, nix.ErrNotValid) {
		t.Errorf("closure without a reference: %v", err)
	}
}

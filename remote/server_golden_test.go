package remote_test

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/internal/wire"
	"github.com/copy-closure/copy-closure/remote"
)

var updateServer = flag.Bool("update-server", false, "record the server's transcripts anew from the real nix-store")

// goldenObjects are what is valid in the store that a transcript begins with.
func goldenObjects() nixtest.Closure {
	drv, out := nixtest.Derivation("fixed", nixtest.Node{Content: "x"})
	objects := append(nixtest.Diamond(), drv, out)
	objects = append(objects, nixtest.Random(1, 8)...)
	objects[0].Info.Signatures = []string{"b-1:" + strings.Repeat("B", 86) + "==", "a-1:" + strings.Repeat("A", 86) + "=="}
	return objects
}

// A goldenSession is a transcript: what the client says to a store that has
// goldenObjects.
type goldenSession struct {
	name string
	say  func(w *wire.Writer)
}

func goldenSessions() []goldenSession {
	objects := goldenObjects()
	absent := nixtest.Chain(2)
	asked := func(w *wire.Writer, command uint64, flags []uint64, paths ...nix.StorePath) {
		w.Uint64(command)
		for _, f := range flags {
			w.Uint64(f)
		}
		w.Paths(paths)
	}
	return []goldenSession{
		{"hello", func(w *wire.Writer) {}},
		{"valid-paths", func(w *wire.Writer) {
			asked(w, 1, []uint64{0, 0}, append(absent.Paths(), objects.Paths()...)...)
			asked(w, 1, []uint64{1, 0}, absent.Paths()...)
			asked(w, 1, []uint64{0, 0})
			asked(w, 1, []uint64{2, 0}, objects.Top(), objects.Top())
		}},
		{"path-infos", func(w *wire.Writer) {
			asked(w, 2, nil, append(absent.Paths(), objects.Paths()...)...)
			asked(w, 2, nil, absent.Paths()...)
			asked(w, 2, nil, objects.Top(), objects.Top())
		}},
		{"dump", func(w *wire.Writer) {
			for _, p := range objects.Paths()[:6] {
				w.Uint64(3)
				w.Path(p)
			}
		}},
		{"closure", func(w *wire.Writer) {
			drv := objects.Paths()[4]
			asked(w, 7, []uint64{0}, objects.Paths()[3])
			asked(w, 7, []uint64{0}, objects.Paths()...)
			asked(w, 7, []uint64{0}, drv)
			asked(w, 7, []uint64{1}, drv)
			asked(w, 7, []uint64{0})
		}},
		{"add", func(w *wire.Writer) {
			for _, o := range append(absent, objects[1], nixtest.Flat("flat", "flat\n")) {
				writeServerAdd(w, o.Info)
				w.Write(o.NAR)
			}
			asked(w, 2, nil, absent.Paths()...)
		}},
		{"export", func(w *wire.Writer) {
			asked(w, 5, []uint64{0}, objects[4].Info.Path)
			asked(w, 5, []uint64{0}, objects.Paths()[:4]...)
		}},
		{"build", func(w *wire.Writer) {
			for _, wanted := range []string{objects.Top().String(), objects.Paths()[4].String() + "!out"} {
				w.Uint64(6)
				w.Strings([]string{wanted})
				for range 6 {
					w.Uint64(0)
				}
			}
		}},
	}
}

// TestServeGolden compares our answers with those that Nix 2.8 gave to the same
// requests. testdata/README.md says how they were recorded.
func TestServeGolden(t *testing.T) {
	for _, session := range goldenSessions() {
		t.Run(session.name, func(t *testing.T) {
			var said bytes.Buffer
			w := wire.NewWriter(&said)
			w.Uint64(0x390c9deb)
			w.Uint64(0x207)
			session.say(w)
			w.Flush()
			file := filepath.Join("testdata", "server-"+session.name+".hex")
			if *updateServer {
				recordTranscript(t, file, goldenObjects(), said.Bytes(), "nix-store", "--serve", "--write")
			}
			recorded, answers := readTranscript(t, file)
			if !bytes.Equal(said.Bytes(), recorded) {
				t.Fatalf("the test asks something else than %s: record it with -update-server", file)
			}
			stream := &scriptedStream{in: bytes.NewReader(recorded)}
			err := remote.Serve(t.Context(), stream, serverBackend{nixtest.NewStore(goldenObjects()...)}, serverWriter)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(hexLines(stream.out.Bytes()), hexLines(answers)); d != "" {
				t.Errorf("answers (-ours +Nix's):\n%s", d)
			}
		})
	}
}

// A scriptedStream is a client that has said everything beforehand.
type scriptedStream struct {
	in  io.Reader
	out bytes.Buffer
}

func (s *scriptedStream) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s *scriptedStream) Write(p []byte) (int, error) { return s.out.Write(p) }
func (s *scriptedStream) Close() error                { return nil }

// writeServerAdd writes AddToStoreNar up to its NAR.
func writeServerAdd(w *wire.Writer, info *nix.PathInfo) {
	w.Uint64(9)
	w.Path(info.Path)
	w.Path(info.Deriver)
	w.String(info.NARHash.Hex())
	w.Paths(info.References)
	w.Uint64(uint64(info.Registered.Unix()))
	w.Uint64(uint64(info.NARSize))
	w.Bool(info.Ultimate)
	w.Strings(info.Signatures)
	w.String(info.CA)
}

// hexLines shows bytes by eights, as the protocol counts them.
func hexLines(b []byte) []string {
	var lines []string
	for word := range slices.Chunk(b, 8) {
		lines = append(lines, fmt.Sprintf("%x %q", word, word))
	}
	return lines
}

// readTranscript reads lines of hexadecimal bytes, of the client behind ">" and of
// the server behind "<".
func readTranscript(t *testing.T, file string) (client, server []byte) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		side, digits, _ := strings.Cut(strings.TrimSpace(line), " ")
		b, err := hex.DecodeString(digits)
		switch {
		case err != nil:
			t.Fatalf("%s: %v", file, err)
		case side == ">":
			client = append(client, b...)
		case side == "<":
			server = append(server, b...)
		}
	}
	return client, server
}

func writeTranscript(t *testing.T, file string, client, server []byte) {
	t.Helper()
	var text strings.Builder
	for _, side := range []struct {
		mark  string
		bytes []byte
	}{{">", client}, {"<", server}} {
		for line := range slices.Chunk(side.bytes, 64) {
			fmt.Fprintf(&text, "%s %x\n", side.mark, line)
		}
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// recordTranscript plays a session to one of Nix's programs, with a store of its own
// that has objects.
func recordTranscript(t *testing.T, file string, objects nixtest.Closure, said []byte, program string, args ...string) {
	t.Helper()
	root := nixRoot(t)
	fillNix(t, root, objects)
	writeTranscript(t, file, said, playToNix(t, root, said, program, args...))
}

// playToNix returns what the program answers. It hangs up when the answers cease, since
// hanging up early is an error to Nix.
func playToNix(t *testing.T, root string, said []byte, program string, args ...string) []byte {
	t.Helper()
	cmd := nixCommand(t, root, program, append(args, "--store", root)...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	answers := &idleBuffer{idle: time.NewTimer(time.Hour)}
	cmd.Stdout = answers
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdin.Write(said); err != nil {
		t.Error(err)
	}
	answers.idle.Reset(time.Second)
	<-answers.idle.C
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, cmd.Stderr)
	}
	return answers.Bytes()
}

// An idleBuffer's timer runs off when nothing was written for a second.
type idleBuffer struct {
	bytes.Buffer
	idle *time.Timer
}

func (b *idleBuffer) Write(p []byte) (int, error) {
	b.idle.Reset(time.Second)
	return b.Buffer.Write(p)
}

// nixRoot returns a directory for a store of the real Nix, or skips the test where
// there is none.
func nixRoot(t *testing.T) string {
	t.Helper()
	harness.Need(t, "nix-store")
	root := t.TempDir()
	t.Cleanup(func() { exec.Command("chmod", "-R", "u+w", root).Run() })
	return root
}

// nixCommand prepares a program of the real Nix that touches nothing outside root.
func nixCommand(t *testing.T, root, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stderr = new(bytes.Buffer)
	cmd.Env = append(os.Environ(),
		"HOME="+root,
		"NIX_CONFIG=build-users-group =\nexperimental-features = nix-command\nsubstituters =",
	)
	return cmd
}

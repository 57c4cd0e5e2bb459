package remote_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/internal/wire"
	"github.com/copy-closure/copy-closure/remote"
)

// daemonHello is what a client of version 1.34 says first, that of Nix 2.8.
var daemonHello = words(0x6e697863, 0x122, 0, 0)

// daemonObjects are what is valid in the store that a transcript begins with.
func daemonObjects() nixtest.Closure {
	objects := goldenObjects()
	for _, o := range objects {
		o.Info.Registered = time.Unix(1_000_000_000, 0)
	}
	return objects
}

// daemonSessions are transcripts: what the client says behind its greeting.
func daemonSessions() []goldenSession {
	objects := daemonObjects()
	absent := nixtest.Chain(2)
	for _, o := range absent {
		o.Info.Registered = time.Unix(1_000_000_000, 0)
	}
	ask := func(w *wire.Writer, op uint64, paths ...nix.StorePath) {
		for _, p := range paths {
			w.Uint64(op)
			w.Path(p)
		}
	}
	drv, out := objects.Paths()[4], objects.Paths()[5]
	return []goldenSession{
		{"hello", func(w *wire.Writer) {}},
		{"valid-paths", func(w *wire.Writer) {
			w.Uint64(31)
			w.Paths(append(absent.Paths(), objects.Paths()...))
			w.Uint64(0)
			ask(w, 1, objects.Top(), absent.Top())
			w.Uint64(23)
		}},
		{"path-infos", func(w *wire.Writer) { ask(w, 26, append(absent.Paths(), objects.Paths()...)...) }},
		{"queries", func(w *wire.Writer) {
			ask(w, 6, objects.Paths()[0], objects.Top(), absent.Top()) // referrers
			ask(w, 33, out, drv)                                       // derivers
			ask(w, 41, drv)                                            // outputs
			w.Uint64(29)
			w.String(objects.Top().HashPart())
			w.Uint64(29)
			w.String(absent.Top().HashPart())
			ask(w, 11, objects.Top(), absent.Top()) // temporary roots
			w.Uint64(40)                            // missing
			w.Strings([]string{objects.Top().String(), drv.String(), drv.String() + "!out"})
			w.Uint64(32) // substitutable
			w.Paths(absent.Paths())
		}},
		{"nars", func(w *wire.Writer) { ask(w, 38, objects.Paths()[:6]...) }},
		{"add", func(w *wire.Writer) {
			for _, o := range append(absent, objects[1], nixtest.Flat("flat", "flat\n")) {
				writeDaemonAdd(w, o)
			}
			ask(w, 26, absent.Paths()...)
			w.Uint64(37) // signatures
			w.Path(objects.Top())
			w.Strings([]string{nixtest.Signature("k-1")})
			ask(w, 26, objects.Top())
		}},
		{"add-multiple", func(w *wire.Writer) {
			w.Uint64(44)
			w.Uint64(0)
			w.Uint64(1)
			frames := wire.NewFrameWriter(w)
			var b bytes.Buffer
			group := wire.NewWriter(&b)
			group.Uint64(uint64(len(absent)))
			for _, o := range absent {
				writeDaemonInfo(group, o.Info)
				group.Write(o.NAR)
			}
			group.Flush()
			frames.Write(b.Bytes())
			frames.Close()
			ask(w, 26, absent.Paths()...)
		}},
		{"build", func(w *wire.Writer) {
			for _, op := range []uint64{9, 46} {
				w.Uint64(op)
				w.Strings([]string{objects.Top().String()})
				w.Uint64(0)
			}
			ask(w, 10, objects.Top()) // ensure
			w.Uint64(19)              // options
			for range 12 {
				w.Uint64(0)
			}
			w.Uint64(1)
			w.String("cores")
			w.String("1")
			ask(w, 1, objects.Top())
		}},
	}
}

// writeDaemonAdd writes AddToStoreNar as clients since 1.23 do, for a trusted client.
func writeDaemonAdd(w *wire.Writer, o nixtest.Object) {
	w.Uint64(39)
	writeDaemonInfo(w, o.Info)
	w.Uint64(0) // repair
	w.Uint64(1) // without signatures
	frames := wire.NewFrameWriter(w)
	frames.Write(o.NAR)
	frames.Close()
}

func writeDaemonInfo(w *wire.Writer, info *nix.PathInfo) {
	w.Path(info.Path)
	w.Path(info.Deriver)
	w.String(info.NARHash.Hex())
	w.Paths(info.References)
	w.Uint64(uint64(info.Registered.Unix()))
	w.Uint64(uint64(info.NARSize))
	w.Uint64(0)
	w.Strings(info.Signatures)
	w.String(info.CA)
}

// TestServeDaemonGolden compares our answers with those that Nix 2.8 gave to the same
// requests. Nix also tells what it is doing.
func TestServeDaemonGolden(t *testing.T) {
	for _, session := range daemonSessions() {
		t.Run(session.name, func(t *testing.T) {
			var said bytes.Buffer
			w := wire.NewWriter(&said)
			w.Write(daemonHello)
			session.say(w)
			w.Flush()
			file := filepath.Join("testdata", "daemon-"+session.name+".hex")
			if *updateServer {
				recordTranscript(t, file, daemonObjects(), said.Bytes(), "nix-daemon", "--stdio")
			}
			recorded, answers := readTranscript(t, file)
			if !bytes.Equal(said.Bytes(), recorded) {
				t.Fatalf("the test asks something else than %s: record it with -update-server", file)
			}
			stream := &scriptedStream{in: bytes.NewReader(recorded)}
			err := remote.ServeDaemon(t.Context(), stream, serverBackend{nixtest.NewStore(daemonObjects()...)}, serverWriter)
			if err != nil {
				t.Fatal(err)
			}
			got, want := behindGreeting(t, stream.out.Bytes()), withoutActivities(t, behindGreeting(t, answers))
			if d := cmp.Diff(hexLines(got), hexLines(want)); d != "" {
				t.Errorf("answers (-ours +Nix's):\n%s", d)
			}
		})
	}
}

// behindGreeting skips a daemon's greeting to a client of version 1.34.
func behindGreeting(t *testing.T, said []byte) []byte {
	t.Helper()
	b := bytes.NewReader(said)
	r := wire.NewReader(b)
	if magic, version := r.Uint64(), r.Uint64(); magic != 0x6478696f || version>>8 != 1 {
		t.Fatalf("it greets with %#x and version %#x", magic, version)
	}
	r.String(wire.MaxField)
	if last := r.Uint64(); r.Err() != nil || last != 0x616c7473 {
		t.Fatalf("its greeting ends with %#x (error %v)", last, r.Err())
	}
	return said[len(said)-b.Len()-r.Buffered():]
}

// withoutActivities drops the messages that tell what a daemon is doing.
func withoutActivities(t *testing.T, said []byte) []byte {
	t.Helper()
	var rest []byte
	for len(said) >= 8 {
		size := 0
		switch tag := binary.LittleEndian.Uint64(said); tag {
		case 0x53545254: // start
			b := bytes.NewReader(said)
			r := wire.NewReader(b)
			for range 4 {
				r.Uint64()
			}
			text := r.String(wire.MaxField)
			if fields := r.Uint64(); fields != 0 || r.Err() != nil {
				t.Fatalf("the activity %q has %d fields (error %v)", text, fields, r.Err())
			}
			r.Uint64()
			size = len(said) - b.Len() - r.Buffered()
		case 0x53544f50: // stop
			size = 16
		case 0x52534c54: // result: number, type and numbers
			size = 32 + 16*int(binary.LittleEndian.Uint64(said[24:]))
		default:
			rest = append(rest, said[:8]...)
			size = 8
		}
		said = said[size:]
	}
	return rest
}

// A replayedStream is a daemon that has said everything beforehand.
type replayedStream struct {
	io.Reader
	mu   sync.Mutex
	said bytes.Buffer
}

func (s *replayedStream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.said.Write(p)
}

func (s *replayedStream) Close() error { return nil }

// TestDaemonGolden has the client ask what was asked of Nix 2.8, in the same words, and
// understand what that answered.
func TestDaemonGolden(t *testing.T) {
	objects, absent := daemonObjects(), nixtest.Chain(2)
	for _, test := range []struct {
		name string
		ask  func(t *testing.T, d *remote.Daemon)
	}{
		{"path-infos", func(t *testing.T, d *remote.Daemon) {
			infos, err := d.PathInfos(t.Context(), append(absent.Paths(), objects.Paths()...))
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range objects {
				slices.Sort(o.Info.Signatures)
			}
			if d := cmp.Diff(infosByPath(infos), infosByPath(objects.Infos()), nixtest.CompareInfos); d != "" {
				t.Errorf("path infos (-got +want):\n%s", d)
			}
		}},
		{"nars", func(t *testing.T, d *remote.Daemon) {
			lane, err := d.OpenLane(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			takeAll(t, lane, objects[:6])
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			asked, answers := readTranscript(t, filepath.Join("testdata", "daemon-"+test.name+".hex"))
			stream := &replayedStream{Reader: bytes.NewReader(answers)}
			d := openDaemon(t, func(context.Context, bool) (io.ReadWriteCloser, error) { return stream, nil })
			test.ask(t, d)
			d.Close()
			said := bytes.Clone(stream.said.Bytes())
			copy(said[8:16], asked[8:16]) // our version is newer
			if diff := cmp.Diff(hexLines(said), hexLines(asked)); diff != "" {
				t.Errorf("asked (-ours +recorded):\n%s", diff)
			}
		})
	}
}

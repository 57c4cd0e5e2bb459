package remote_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/internal/wire"
	"github.com/copy-closure/copy-closure/remote"
)

// featureRequests are operations 49 and 50 for two paths, as Determinate Nix's source
// has them.
func featureRequests(chain nixtest.Closure) []byte {
	paths := sorted(chain[:2].Paths())
	return slices.Concat(words(49, 2, paths[0], paths[1]), words(50, 2, paths[0], paths[1]))
}

func TestServeDaemonFeatures(t *testing.T) {
	chain := nixtest.Chain(2)
	var info bytes.Buffer
	w := wire.NewWriter(&info)
	writeDaemonInfo(w, chain[0].Info)
	w.Flush()
	for _, test := range []struct {
		name     string
		features []byte
		want     []byte
		err      string
	}{
		{"both", words(3, "addTempRoots", "delete-dead-specific-referrers", "queryPathInfos"),
			slices.Concat(words(0x616c7473, 1), words(0x616c7473, 1), info.Bytes()), ""},
		{"none", words(0), nil, "operation 49 is not known"},
	} {
		t.Run(test.name, func(t *testing.T) {
			store := nixtest.NewStore(chain[0])
			said := slices.Concat(words(0x6e697863, 0x126), test.features, words(0, 0), featureRequests(chain))
			stream := &scriptedStream{in: bytes.NewReader(said)}
			err := remote.ServeDaemon(t.Context(), stream, serverBackend{store}, serverWriter)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("error is %v, want one with %q", err, test.err)
				}
				return
			}
			want := slices.Concat(words(0x6478696f, 0x126, 2, "addTempRoots", "queryPathInfos", "copy-closure", 1, 0x616c7473), test.want)
			if d := cmp.Diff(hexLines(stream.out.Bytes()), hexLines(want)); err != nil || d != "" {
				t.Errorf("error %v, answers (-got +want):\n%s", err, d)
			}
			if d := cmp.Diff(store.Held(), sorted(chain.Paths()), comparePaths); d != "" {
				t.Errorf("held (-got +want):\n%s", d)
			}
		})
	}
}

// A recordedWrites stream keeps what was written.
type recordedWrites struct {
	io.ReadWriteCloser
	mu   sync.Mutex
	said bytes.Buffer
}

func (s *recordedWrites) Write(p []byte) (int, error) {
	s.mu.Lock()
	s.said.Write(p)
	s.mu.Unlock()
	return s.ReadWriteCloser.Write(p)
}

// TestDaemonFeatures asks about many paths at once, once the daemon has introduced itself,
// and about each path alone where it has no such feature.
func TestDaemonFeatures(t *testing.T) {
	chain := nixtest.Chain(2)
	for version, together := range map[uint64]bool{0: true, 0x125: false} {
		store := nixtest.NewStore(chain[0])
		var stream *recordedWrites
		h := &daemonHost{store: store, options: serverWriter, version: version, fault: func(s io.ReadWriteCloser) io.ReadWriteCloser {
			stream = &recordedWrites{ReadWriteCloser: s}
			return stream
		}}
		d := openDaemon(t, h.open)
		if _, err := d.Trust(t.Context()); err != nil {
			t.Fatal(err)
		}
		stream.mu.Lock()
		stream.said.Reset()
		stream.mu.Unlock()
		if err := d.Hold(t.Context(), chain.Paths()); err != nil {
			t.Fatal(err)
		}
		infos, err := d.PathInfos(t.Context(), chain.Paths())
		if err != nil || len(infos) != 1 || infos[0].Path != chain[0].Info.Path || infos[0].NARHash != chain[0].Info.NARHash {
			t.Errorf("PathInfos = %v, %v; want %v", infos, err, chain[0].Info)
		}
		if got := bytes.Equal(stream.said.Bytes(), featureRequests(chain)); got != together {
			t.Errorf("version %#x: the client said\n%s", version, hexLines(stream.said.Bytes()))
		}
		if d := cmp.Diff(store.Held(), sorted(chain.Paths()), comparePaths); d != "" {
			t.Errorf("held (-got +want):\n%s", d)
		}
	}
}

// TestDaemonFeaturesHostile has a daemon answer with what was not asked for.
func TestDaemonFeaturesHostile(t *testing.T) {
	chain := nixtest.Chain(3)
	infoOf := func(o nixtest.Object) []byte {
		var b bytes.Buffer
		w := wire.NewWriter(&b)
		writeDaemonInfo(w, o.Info)
		w.Flush()
		return b.Bytes()
	}
	greeting := words(0x6478696f, 0x126, 1, "queryPathInfos", "2.40", 1, 0x616c7473)
	for name, answer := range map[string][]byte{
		"another path": slices.Concat(words(0x616c7473, 1), infoOf(chain[2])),
		"one twice":    slices.Concat(words(0x616c7473, 2), infoOf(chain[0]), infoOf(chain[0])),
		"too many":     slices.Concat(words(0x616c7473, 3), infoOf(chain[0]), infoOf(chain[1]), infoOf(chain[2])),
		"endless":      words(0x616c7473, uint64(1)<<40),
	} {
		near, far := nixtest.Pipe()
		go io.Copy(io.Discard, far)
		far.Write(slices.Concat(greeting, answer))
		d := openDaemon(t, func(context.Context, bool) (io.ReadWriteCloser, error) { return near, nil })
		if _, err := d.Trust(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err := d.PathInfos(t.Context(), []nix.StorePath{chain[0].Info.Path, chain[1].Info.Path})
		var format *wire.FormatError
		if !errors.As(err, &format) {
			t.Errorf("%s: error is %v, want a *wire.FormatError", name, err)
		}
		far.Close()
	}
}

package remote_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/internal/wire"
	"github.com/copy-closure/copy-closure/remote"
)

// serveDaemonBytes serves a client that has said everything beforehand, and returns the
// answer behind the greeting.
func serveDaemonBytes(s *nixtest.Store, o remote.ServerOptions, said ...[]byte) (answer []byte, err error) {
	stream := &scriptedStream{in: bytes.NewReader(bytes.Join(append([][]byte{daemonHello}, said...), nil))}
	err = remote.ServeDaemon(context.Background(), stream, serverBackend{s}, o)
	greeting := len(words(0, 0, "copy-closure", 0))
	return stream.out.Bytes()[min(greeting, stream.out.Len()):], err
}

// daemonError reads an error that an answer begins with.
func daemonError(t *testing.T, answer []byte) (text string, rest []byte) {
	t.Helper()
	b := bytes.NewReader(answer)
	r := wire.NewReader(b)
	if tag := r.Uint64(); tag != 0x63787470 {
		t.Fatalf("the answer begins with %#x, not an error: %q", tag, answer)
	}
	r.String(wire.MaxField)
	r.Uint64()
	r.String(wire.MaxField)
	text = r.String(wire.MaxText)
	if have, traces := r.Uint64(), r.Uint64(); have != 0 || traces != 0 || r.Err() != nil {
		t.Fatalf("the error %q ends with %d, %d (%v)", text, have, traces, r.Err())
	}
	return text, answer[len(answer)-b.Len()-r.Buffered():]
}

// isValid asks whether a path is valid, and yes is the answer.
func isValid(p nix.StorePath) []byte { return words(1, p) }

var yes = words(0x616c7473, 1)

// addBytes is AddToStoreNar with a path info that was changed.
func addBytes(o nixtest.Object, change func(*nix.PathInfo), unchecked int) []byte {
	info := *o.Info
	change(&info)
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	w.Uint64(39)
	writeDaemonInfo(w, &info)
	w.Uint64(0)
	w.Uint64(uint64(unchecked))
	frames := wire.NewFrameWriter(w)
	frames.Write(o.NAR)
	frames.Close()
	w.Flush()
	return b.Bytes()
}

// TestServeDaemonRefuses makes requests that cannot be granted, and a good one behind
// each: the session goes on.
func TestServeDaemonRefuses(t *testing.T) {
	chain := nixtest.Chain(2)
	there, top, absent := chain[0].Info.Path, chain[1], nixtest.Chain(3).Top()
	same := func(*nix.PathInfo) {}
	reader := remote.ServerOptions{}
	strict := remote.ServerOptions{Write: true, Check: func(*nix.PathInfo) error { return nix.ErrNotTrusted }}
	asked := strict
	asked.Trust = true
	for _, test := range []struct {
		name    string
		options remote.ServerOptions
		said    []byte
		want    string
	}{
		{"NAR of what is absent", reader, words(38, absent), "path is not valid"},
		{"outputs of what is absent", reader, words(41, absent), "path is not valid"},
		{"add to a reader", reader, addBytes(top, same, 1), "may not add paths"},
		{"add without trust", strict, addBytes(top, same, 1), "path is not trusted"},
		{"add with checks", asked, addBytes(top, same, 0), "path is not trusted"},
		{"add without references", serverWriter, addBytes(nixtest.Chain(4)[3], same, 1), "path is not valid"},
		{"add of wrong size", serverWriter, addBytes(top, func(i *nix.PathInfo) { i.NARSize -= 8 }, 1), "NAR hash is"},
		{"add of more than there is", serverWriter, addBytes(top, func(i *nix.PathInfo) { i.NARSize += 8 }, 1), "unexpected EOF"},
		{"add of nothing that is known", serverWriter, words(44, 0, 1, 8, words(1<<40), 0), "is longer than"},
		{"add that repairs", serverWriter, words(44, 1, 1, framed(words(1, top.Info.Path, "", top.Info.NARHash.Hex(), 0, 0, 112, 0, 0, ""))), "cannot be repaired"},
		{"group to a reader", reader, words(44, 0, 1, framed(words(1, top.Info.Path, "", top.Info.NARHash.Hex(), 0, 0, 112, 0, 0, ""))), "may not add paths"},
		{"files to a reader", reader, words(7, "x", "fixed:r:sha256", 0, 0, framed(nil)), "may not add files"},
		{"files by an unknown method", serverWriter, words(7, "x", "fixed:git:sha1", 0, 0, framed(nil)), "is not known here"},
		{"files of no archive", serverWriter, words(7, "x", "fixed:r:sha256", 0, 0, framed([]byte("no archive"))), "malformed NAR"},
		{"files with a bad name", serverWriter, words(7, "a/b", "text:sha256", 0, 0, framed([]byte("text"))), "store path name"},
		{"signatures by a reader", reader, words(37, there, 0), "may not add signatures"},
		{"signatures of what is absent", serverWriter, words(37, absent, 0), "path is not valid"},
		{"indirect root by a reader", reader, words(12, "/tmp/link"), "may not add roots"},
		{"root by an untrusted client", strict, words(47, there, "/tmp/link"), "only a trusted client"},
		{"root that is no absolute path", serverWriter, words(47, there, "link"), "not an absolute path"},
		{"ensure what is absent", serverWriter, words(10, absent), "does not build"},
		{"build what is absent", serverWriter, words(9, 1, absent.String(), 0), "does not build"},
		{"collect garbage", serverWriter, words(20, 2, 0, 0, 0, 0, 0, 0), "on the host itself"},
		{"verify", serverWriter, words(35, 1, 1), "on the host itself"},
		{"optimise", serverWriter, words(34), "on the host itself"},
		{"build log", serverWriter, words(45, absent.Base(), framed([]byte("log"))), "keeps none"},
		{"realisation", serverWriter, words(42, "{}"), "realisation"},
		{"realisation to a reader", reader, words(42, realisationText), "may not register realisations"},
		{"realisation by an untrusted client", strict, words(42, realisationText), "lacks a signature by a trusted key"},
		{"query of what is no output", reader, words(43, "sha256:00!out"), "not in the form sha256:HEX!OUTPUT"},
	} {
		t.Run(test.name, func(t *testing.T) {
			store := nixtest.NewStore(chain[0])
			answer, err := serveDaemonBytes(store, test.options, test.said, isValid(there))
			if err != nil {
				t.Fatal(err)
			}
			text, rest := daemonError(t, answer)
			if !strings.Contains(text, test.want) {
				t.Errorf("error is %q, want one with %q", text, test.want)
			}
			if !bytes.Equal(rest, yes) {
				t.Errorf("the answer behind it is %q", rest)
			}
			if all := store.All(); len(all) != 1 {
				t.Errorf("store has %v", all)
			}
		})
	}
}

// TestServeDaemonRoots has an untrusted client make more roots than it may.
func TestServeDaemonRoots(t *testing.T) {
	strict := serverWriter
	strict.Check = func(*nix.PathInfo) error { return nix.ErrNotTrusted }
	const limit = 1 << 10
	for _, test := range []struct {
		name    string
		options remote.ServerOptions
		want    int
	}{{"untrusted", strict, limit}, {"trusted", serverWriter, limit + 5}} {
		store := nixtest.NewStore()
		var said [][]byte
		for i := range limit + 5 {
			said = append(said, words(12, fmt.Sprintf("/tmp/link-%d", i)))
		}
		if _, err := serveDaemonBytes(store, test.options, said...); err != nil {
			t.Fatal(err)
		}
		made, err := store.Roots(t.Context())
		if err != nil || len(made) != test.want {
			t.Errorf("an %s client has made %d roots, expected %d (%v)", test.name, len(made), test.want, err)
		}
	}
}

// TestServeDaemonSignatures checks that a client that is not trusted may add signatures by
// trusted keys and no others.
func TestServeDaemonSignatures(t *testing.T) {
	key, err := nix.GenerateSecretKey("good-1")
	if err != nil {
		t.Fatal(err)
	}
	o := nixtest.Chain(1)[0]
	good, err := key.Sign(o.Info)
	if err != nil {
		t.Fatal(err)
	}
	forged, other := nixtest.Signature("good-1"), nixtest.Signature("other-1")
	strict := serverWriter
	strict.Check = func(*nix.PathInfo) error { return nix.ErrNotTrusted }
	strict.Keys = nix.TrustedKeys{"good-1": key.Public()}
	trusting := strict
	trusting.Trust = true
	for _, test := range []struct {
		name    string
		options remote.ServerOptions
		said    []string
		want    []string
		fails   bool
	}{
		{"by a trusted key", strict, []string{good}, []string{good}, false},
		{"by another key", strict, []string{other}, nil, true},
		{"forged", strict, []string{forged}, nil, true},
		{"malformed", strict, []string{"good-1:AAAA", "x"}, nil, true},
		{"some", strict, []string{forged, good, other}, []string{good}, false},
		{"by a trusted client", trusting, []string{other, "x"}, []string{other}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			store := nixtest.NewStore(o)
			said := words(37, o.Info.Path, len(test.said))
			for _, sig := range test.said {
				said = append(said, words(sig)...)
			}
			answer, err := serveDaemonBytes(store, test.options, said)
			if err != nil {
				t.Fatal(err)
			}
			if test.fails {
				if text, _ := daemonError(t, answer); !strings.Contains(text, "none is by a trusted key") {
					t.Errorf("error is %q", text)
				}
			}
			infos, err := store.PathInfos(t.Context(), []nix.StorePath{o.Info.Path})
			if err != nil || !slices.Equal(infos[0].Signatures, test.want) {
				t.Errorf("signatures are %q, want %q (%v)", infos[0].Signatures, test.want, err)
			}
		})
	}
}

// framed is a framed substream of one piece.
func framed(content []byte) []byte {
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	frames := wire.NewFrameWriter(w)
	frames.Write(content)
	frames.Close()
	w.Flush()
	return b.Bytes()
}

// TestServeDaemonHangsUp breaks the protocol: the error is told twice, and no further
// request is answered.
func TestServeDaemonHangsUp(t *testing.T) {
	chain := nixtest.Chain(2)
	top := chain.Top()
	huge := uint64(1) << 62
	for _, test := range []struct {
		name string
		said []byte
		want string
	}{
		{"unknown operation", words(1000), "operation 1000 is not known"},
		{"endless list", words(31, huge), "is longer than"},
		{"endless string", words(26, huge), "is longer than"},
		{"path of another store", words(1, "/tmp/store/"+top.Base()), "is not in the store"},
		{"path above the store", words(38, "/nix/store/../"+top.Base()), "is no store path"},
		{"endless options", words(19, make([]byte, 12*8), huge), "is longer than"},
		{"endless frame", words(45, top.Base(), huge), "is longer than"},
		{"add with a negative size", addBytes(chain[1], func(i *nix.PathInfo) { i.NARSize = -1 }, 1), "is too large"},
		{"add with too large a signature", addBytes(chain[1], func(i *nix.PathInfo) { i.Signatures = []string{strings.Repeat("x", wire.MaxField+1)} }, 1), "is longer than"},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer, err := serveDaemonBytes(nixtest.NewStore(chain[0]), serverWriter, test.said, isValid(chain[0].Info.Path))
			var format *wire.FormatError
			if !errors.As(err, &format) {
				t.Errorf("error is %v, want a *wire.FormatError", err)
			}
			for range 2 {
				var text string
				if text, answer = daemonError(t, answer); !strings.Contains(text, test.want) {
					t.Errorf("error is %q, want one with %q", text, test.want)
				}
			}
			if len(answer) > 0 {
				t.Errorf("it goes on with %q", answer)
			}
		})
	}
}

func TestServeDaemonGreeting(t *testing.T) {
	for _, test := range []struct {
		name string
		said []byte
		want string // empty: no error
	}{
		{"nobody", nil, "read the client's greeting"},
		{"serve protocol", words(0x390c9deb, 0x207), "protocol mismatch"},
		{"version 1.17", words(0x6e697863, 0x111, 0, 0), "version 1.17"},
		{"version 2.0", words(0x6e697863, 0x200, 0, 0), "version 2.0"},
		{"version 1.18", words(0x6e697863, 0x112, 0, 0), ""},
		{"a processor", words(0x6e697863, 0x122, 1, 7, 0), ""},
		{"features", words(0x6e697863, 0x126, 1, "some-feature", 0, 0), ""},
		{"endless features", words(0x6e697863, 0x126, uint64(1)<<40), "is longer than"},
		{"a newer version", words(0x6e697863, 0x1ff, 0, 0, 0), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			stream := &scriptedStream{in: bytes.NewReader(test.said)}
			err := remote.ServeDaemon(t.Context(), stream, serverBackend{nixtest.NewStore()}, remote.ServerOptions{})
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want %q", err, test.want)
			}
		})
	}
}

// TestServeDaemonAddToStore adds files, whose paths follow from them.
func TestServeDaemonAddToStore(t *testing.T) {
	tree := nixtest.Source("tree", nixtest.Node{Content: "tree\n"})
	flat, text := nixtest.Flat("flat", "flat\n"), nixtest.Text("text", "text\n")
	for _, test := range []struct {
		object  nixtest.Object
		method  string
		content []byte
	}{
		{tree, "fixed:r:sha256", tree.NAR},
		{flat, "fixed:sha256", []byte("flat\n")},
		{text, "text:sha256", []byte("text\n")},
	} {
		t.Run(test.method, func(t *testing.T) {
			info := test.object.Info
			store := nixtest.NewStore()
			answer, err := serveDaemonBytes(store, serverWriter, words(7, info.Path.Name(), test.method, 0, 0, framed(test.content)))
			if err != nil {
				t.Fatal(err)
			}
			want := words(0x616c7473, info.Path, "", info.NARHash.Hex(), 0, 0, int(info.NARSize), 0, 0, info.CA)
			if d := cmp.Diff(hexLines(answer), hexLines(want)); d != "" {
				t.Errorf("answer (-got +want):\n%s", d)
			}
			if err := store.Verify(); err != nil || !slices.Equal(store.All(), []nix.StorePath{info.Path}) {
				t.Errorf("store has %v (%v)", store.All(), err)
			}
		})
	}
}

// A namedSubstituter keeps the names of caches.
type namedSubstituter struct {
	serverSubstituter
	named []string
}

func (s *namedSubstituter) Name(addresses []string) { s.named = addresses }

// Foresee has the objects, and says that each is 10 bytes long.
func (s *namedSubstituter) Foresee(context.Context, []nix.StorePath) (infos []*nix.PathInfo, download int64, err error) {
	for _, o := range s.objects {
		infos = append(infos, o.Info)
	}
	return infos, 10 * int64(len(infos)), nil
}

// TestServeDaemonMissing asks for a path that a cache has. Of what it refers to one is
// valid, one comes from the cache, and one is nowhere.
func TestServeDaemonMissing(t *testing.T) {
	chain := nixtest.Chain(4)
	store := nixtest.NewStore(chain[0])
	for name, test := range map[string]struct {
		cached nixtest.Closure
		want   []byte
	}{
		"top alone": {chain[3:], words(0x616c7473, 0, 1, chain.Top(), 1, chain[2].Info.Path, 10, int(chain[3].Info.NARSize))},
		"nothing":   {nil, words(0x616c7473, 0, 0, 1, chain.Top(), 0, 0)},
	} {
		o := remote.ServerOptions{Write: true, Substituter: &namedSubstituter{serverSubstituter: serverSubstituter{objects: test.cached}}}
		answer, err := serveDaemonBytes(store, o, words(40, 1, chain.Top()))
		if err != nil || !bytes.Equal(answer, test.want) {
			t.Errorf("%s: answer (%v)\n%s\nwant\n%s", name, err, hexLines(answer), hexLines(test.want))
		}
	}
}

// TestServeDaemonOptions sets options, of which the caches are handed on.
func TestServeDaemonOptions(t *testing.T) {
	substituter := new(namedSubstituter)
	o := remote.ServerOptions{Write: true, Substituter: substituter}
	said := words(19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		3, "substituters", "http://a  http://b", "cores", "4", "extra-substituters", "http://c")
	answer, err := serveDaemonBytes(nixtest.NewStore(), o, said)
	if want := words(0x616c7473); err != nil || !bytes.Equal(answer, want) {
		t.Errorf("answer %q (%v), want %q", answer, err, want)
	}
	if want := []string{"http://a", "http://b", "http://c"}; !slices.Equal(substituter.named, want) {
		t.Errorf("the substituter is told of %q, want %q", substituter.named, want)
	}
}

// TestServeDaemonResults has builds that are none, as clients of different versions see
// them.
func TestServeDaemonResults(t *testing.T) {
	valid := nixtest.Chain(1).Top().String()
	store := nixtest.NewStore(nixtest.Chain(1)...)
	for minor, want := range map[int][]byte{
		0x1c: words(0x616c7473, 1, valid, 2, "", 0),
		0x1d: words(0x616c7473, 1, valid, 2, "", 0, 0, 0, 0, 0),
		0x25: words(0x616c7473, 1, valid, 2, "", 0, 0, 0, 0, 0, 0, 0),
	} {
		said := words(0x6e697863, 0x100+minor, 0, 0, 46, 1, valid, 0)
		stream := &scriptedStream{in: bytes.NewReader(said)}
		if err := remote.ServeDaemon(t.Context(), stream, serverBackend{store}, serverWriter); err != nil {
			t.Fatal(err)
		}
		if got := stream.out.Bytes(); !bytes.HasSuffix(got, want) {
			t.Errorf("1.%d: answer %q, want %q at its end", minor, got, want)
		}
	}
}

// TestServeDaemonFlip changes a bit of every byte of a push. Whatever becomes valid is
// what was sent.
func TestServeDaemonFlip(t *testing.T) {
	objects := nixtest.Chain(2)
	said := daemonHello
	for _, o := range objects {
		said = slices.Concat(said, addBytes(o, func(*nix.PathInfo) {}, 1))
	}
	want := infosByPath(objects.Infos())
	for n := range said {
		store := nixtest.NewStore()
		near, far := nixtest.Pipe()
		near.Write(said)
		near.(interface{ CloseWrite() error }).CloseWrite()
		remote.ServeDaemon(t.Context(), nixtest.FlipReads(far, int64(n)), serverBackend{store}, serverWriter)
		near.Close()
		if err := store.Verify(); err != nil {
			t.Errorf("byte %d: %v", n, err)
		}
		infos, _ := store.PathInfos(t.Context(), store.All())
		for _, info := range infos {
			if d := cmp.Diff(info, want[info.Path.String()], nixtest.CompareInfos, cmp.FilterPath(isClaim, cmp.Ignore())); d != "" {
				t.Errorf("byte %d (-got +want):\n%s", n, d)
			}
		}
	}
}

// FuzzServeDaemon says anything to a server that believes everybody. It must come to
// an end with a store that is whole.
func FuzzServeDaemon(f *testing.F) {
	for _, session := range daemonSessions() {
		var b bytes.Buffer
		w := wire.NewWriter(&b)
		session.say(w)
		w.Flush()
		f.Add(b.Bytes()[:min(b.Len(), 2000)])
	}
	f.Add(words(7, "x", "text:sha256", 0, 0, framed([]byte("text"))))
	objects := daemonObjects()
	f.Fuzz(func(t *testing.T, said []byte) {
		store := nixtest.NewStore(objects...)
		serveDaemonBytes(store, serverWriter, said)
		if err := store.Verify(); err != nil {
			t.Error(err)
		}
	})
}

// FuzzDaemon has a daemon answer anything to a client, which must not take it for what
// it asked.
func FuzzDaemon(f *testing.F) {
	objects := nixtest.Chain(2)
	greeting := words(0x6478696f, 0x126, 0, "2.35.2", 1, 0x616c7473)
	f.Add(words(0x616c7473, 1, objects.Top()))
	f.Add(words(0x63787470, "Error", 0, "Error", "no", 0, 1, 0, "while asking"))
	f.Add(words(0x6f6c6d67, "building\n", 0x53545254, 1, 3, 100, "copying", 2, 0, 7, 1, "x", 0, 0x53544f50, 1, 0x616c7473, 0))
	f.Add(words(0x52534c54, 1, 105, 1, 0, 5, 0x64617461, 5))
	f.Fuzz(func(t *testing.T, answer []byte) {
		stream := &replayedStream{Reader: io.MultiReader(bytes.NewReader(greeting), bytes.NewReader(answer))}
		d := openDaemon(t, func(context.Context, bool) (io.ReadWriteCloser, error) { return stream, nil })
		defer d.Close()
		valid, err := d.ValidPaths(t.Context(), objects.Paths(), false, false)
		if err != nil {
			return
		}
		for _, p := range valid {
			if !slices.Contains(objects.Paths(), p) {
				t.Errorf("%s is valid, which was not asked for", p)
			}
		}
	})
}

// TestDaemonMessages has answers behind and between messages, and errors with traces.
func TestDaemonMessages(t *testing.T) {
	chain := nixtest.Chain(1)
	greeting := words(0x6478696f, 0x126, 0, "2.35.2", 2, 0x616c7473)
	noise := words(0x6f6c6d67, "\x1b[31mbuilding\x1b[0m\n", 0x53545254, 1, 3, 100, "copying", 2, 0, 7, 1, "x", 0, 0x52534c54, 1, 105, 1, 0, 5, 0x53544f50, 1)
	for _, test := range []struct {
		name   string
		answer []byte
		valid  int
		want   string
	}{
		{"messages", slices.Concat(noise, words(0x616c7473, 1, chain.Top())), 1, ""},
		{"error", slices.Concat(noise, words(0x63787470, "Error", 0, "Error", "path '\x1b[35mx\x1b[0m' is not valid", 0, 2, 0, "while a", 0, "while b")),
			0, "ask which paths are valid: path '\x1b[35mx\x1b[0m' is not valid\n… while a\n… while b"},
		{"error with a position", words(0x63787470, "Error", 0, "Error", "no", 1), 0, "broke the protocol"},
		{"endless traces", words(0x63787470, "Error", 0, "Error", "no", 0, uint64(1)<<40), 0, "broke the protocol"},
		{"endless fields", words(0x52534c54, 1, 105, uint64(1)<<40), 0, "broke the protocol"},
		{"unknown message", words(0x12345678), 0, "broke the protocol"},
		{"data asked for", words(0x64617461, 8), 0, "broke the protocol"},
		{"unasked path", words(0x616c7473, 1, nixtest.Chain(3).Top()), 0, "not asked for"},
		{"huge list", words(0x616c7473, uint64(1)<<62), 0, "broke the protocol"},
		{"end", nil, 0, "closed the connection"},
	} {
		t.Run(test.name, func(t *testing.T) {
			stream := &replayedStream{Reader: bytes.NewReader(slices.Concat(greeting, test.answer))}
			d := openDaemon(t, func(context.Context, bool) (io.ReadWriteCloser, error) { return stream, nil })
			valid, err := d.ValidPaths(t.Context(), chain.Paths(), false, false)
			if len(valid) != test.valid || (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("ValidPaths = %v, %v; want %d paths, error %q", valid, err, test.valid, test.want)
			}
		})
	}
}

// TestDaemonVersions meets daemons that are too old, or something else.
func TestDaemonVersions(t *testing.T) {
	for name, test := range map[string]struct{ said, want string }{
		"too old":        {string(words(0x6478696f, 0x114)), "speaks version 1.20"},
		"another major":  {string(words(0x6478696f, 0x226)), "speaks version 2.38"},
		"serve protocol": {string(words(0x5452eecb, 0x207)), "does not speak Nix's worker protocol"},
		"a shell":        {"bash: nix-daemon: command not found\n", "command not found"},
		"wrong trust":    {string(words(0x6478696f, 0x126, 0, "2.35", 3)), "whether it trusts us"},
	} {
		t.Run(name, func(t *testing.T) {
			stream := &replayedStream{Reader: strings.NewReader(test.said)}
			d := openDaemon(t, func(context.Context, bool) (io.ReadWriteCloser, error) { return stream, nil })
			_, err := d.ValidPaths(t.Context(), nixtest.Chain(1).Paths(), false, false)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want one with %q", err, test.want)
			}
		})
	}
}

// TestDaemonStopsSending has a daemon refuse a path of which it has not seen much: the
// rest is not sent.
func TestDaemonStopsSending(t *testing.T) {
	near, far := nixtest.Pipe()
	d := openDaemon(t, func(context.Context, bool) (io.ReadWriteCloser, error) { return near, nil })
	refused := make(chan int64, 1)
	go func() {
		defer far.Close()
		r, w := wire.NewReader(far), wire.NewWriter(far)
		w.Write(words(0x6478696f, 0x122))
		w.Flush()
		r.Uint64()
		r.Uint64()
		w.Write(words("2.8.0", 0x616c7473))
		w.Flush()
		for range 2 {
			r.Uint64()
		}
		r.Uint64() // operation
		r.String(1000)
		r.OptionalPath(nixtest.Dir)
		r.String(1000)
		r.Paths(nixtest.Dir, 0)
		for range 3 {
			r.Uint64()
		}
		r.Strings(0, 0)
		r.String(1000)
		r.Uint64()
		r.Uint64()
		w.Write(words(0x63787470, "Error", 0, "Error", "it lacks a valid signature", 0, 0))
		w.Flush()
		n, _ := wire.NewFrameReader(r).Drain()
		refused <- n
	}()
	lane, err := d.OpenLane(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	info := *nixtest.Chain(1)[0].Info
	info.NARSize = 1 << 40
	verdict := make(chan error, 1)
	if err := lane.Add(t.Context(), &info, endlessNAR{}, func(err error) { verdict <- err }); err != nil {
		t.Fatal(err)
	}
	if err := lane.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := <-verdict; !errors.Is(err, nix.ErrNotTrusted) {
		t.Errorf("verdict: %v", err)
	}
	if n := <-refused; n >= info.NARSize {
		t.Errorf("%d bytes were sent", n)
	}
}

// An endlessNAR goes on until its writer has enough.
type endlessNAR struct{}

func (endlessNAR) WriteTo(w io.Writer) (n int64, err error) {
	piece := binary.LittleEndian.AppendUint64(make([]byte, 1<<16), 0)
	for err == nil {
		var more int
		more, err = w.Write(piece)
		n += int64(more)
	}
	return n, err
}

// realisationText is what Nix 2.8 wrote of a build.
const realisationText = `{"dependentRealisations":{},"id":"sha256:6b9206b68e3d12a3cc840a6e022b5394a2297822e0c61f99383ed9e99661c2cf!out","outPath":"aghv8shzw76p3aakd1zl1scsx4l5xf6l-ca-thing","signatures":[]}`

// TestServeDaemonRealisations registers and queries a realisation. A client that is not
// trusted needs a signature by a trusted key.
func TestServeDaemonRealisations(t *testing.T) {
	key, err := nix.GenerateSecretKey("good-1")
	if err != nil {
		t.Fatal(err)
	}
	r, err := nixtest.Dir.ParseRealisation(realisationText)
	if err != nil {
		t.Fatal(err)
	}
	r.Sign([]nix.SecretKey{key})
	strict := serverWriter
	strict.Check = func(*nix.PathInfo) error { return nix.ErrNotTrusted }
	strict.Keys = nix.TrustedKeys{"good-1": key.Public()}
	for _, test := range []struct {
		options remote.ServerOptions
		text    string
	}{{serverWriter, realisationText}, {strict, r.Text()}} {
		answer, err := serveDaemonBytes(nixtest.NewStore(), test.options, words(43, r.ID.String()), words(42, test.text), words(43, r.ID.String()))
		want := bytes.Join([][]byte{words(0x616c7473, 0), words(0x616c7473), words(0x616c7473, 1, test.text)}, nil)
		if err != nil || !bytes.Equal(answer, want) {
			t.Errorf("answer is %q (%v), want %q", answer, err, want)
		}
	}
}

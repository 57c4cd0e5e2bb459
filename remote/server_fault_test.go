package remote_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/internal/wire"
	"github.com/copy-closure/copy-closure/remote"
)

// words is what a client says: integers, strings padded, and bytes as they are.
func words(parts ...any) []byte {
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	for _, part := range parts {
		switch part := part.(type) {
		case int:
			w.Uint64(uint64(part))
		case uint64:
			w.Uint64(part)
		case string:
			w.String(part)
		case nix.StorePath:
			w.Path(part)
		case []byte:
			w.Write(part)
		}
	}
	w.Flush()
	return b.Bytes()
}

var serverHello = words(0x390c9deb, 0x207)

// serveBytes serves a client that has said everything beforehand.
func serveBytes(s *nixtest.Store, o remote.ServerOptions, said ...[]byte) (answer []byte, err error) {
	stream := &scriptedStream{in: bytes.NewReader(bytes.Join(said, nil))}
	err = remote.Serve(context.Background(), stream, serverBackend{s}, o)
	return stream.out.Bytes(), err
}

func TestServeRejects(t *testing.T) {
	chain := nixtest.Chain(2)
	top := chain.Top()
	addTop := func(change func(*nix.PathInfo)) []byte {
		info := *chain[1].Info
		change(&info)
		var b bytes.Buffer
		w := wire.NewWriter(&b)
		writeServerAdd(w, &info)
		w.Write(chain[1].NAR)
		w.Flush()
		return b.Bytes()
	}
	huge := uint64(1) << 62
	reader := remote.ServerOptions{}
	for _, test := range []struct {
		name    string
		options remote.ServerOptions
		said    []byte
		want    string
	}{
		{"unknown command", serverWriter, words(10), "unknown serve command 10"},
		{"half a command", serverWriter, []byte{1, 0, 0}, "unexpected EOF"},
		{"endless list", reader, words(1, 0, 0, huge), "is longer than"},
		{"endless list of infos", reader, words(2, huge), "is longer than"},
		{"list that stops", reader, words(2, 3, top), "unexpected EOF"},
		{"endless string", reader, words(3, huge, "x"), "is longer than"},
		{"path of another store", reader, words(3, "/tmp/store/"+top.Base()), "is not in the store"},
		{"path above the store", reader, words(3, "/nix/store/../"+top.Base()), "is no store path"},
		{"dump of what is absent", reader, words(3, nixtest.Chain(3).Top()), "path is not valid"},
		{"closure of what is absent", reader, words(7, 0, 1, nixtest.Chain(3).Top()), "path is not valid"},
		{"export of what is absent", reader, words(5, 0, 1, nixtest.Chain(3).Top()), "path is not valid"},
		{"add without --write", reader, addTop(func(*nix.PathInfo) {}), "may not add paths"},
		{"import without --write", reader, words(4, 0), "may not import paths"},
		{"build without --write", reader, words(6, 0, 0, 0, 0, 0, 0, 0), "may not build paths"},
		{"build derivation without --write", reader, words(8, top), "may not build derivations"},
		{"add without size", serverWriter, addTop(func(i *nix.PathInfo) { i.NARSize = 0 }), "its NAR has no size"},
		{"add with a negative size", serverWriter, addTop(func(i *nix.PathInfo) { i.NARSize = -1 }), "is too large"},
		{"add of wrong size", serverWriter, addTop(func(i *nix.PathInfo) { i.NARSize -= 8 }), "NAR hash is"},
		{"add of more than there is", serverWriter, addTop(func(i *nix.PathInfo) { i.NARSize += 8 }), "unexpected EOF"},
		{"add with too large a signature", serverWriter, addTop(func(i *nix.PathInfo) { i.Signatures = []string{strings.Repeat("x", wire.MaxField+1)} }), "is longer than"},
		{"add without hash", serverWriter, addTop(func(i *nix.PathInfo) { i.NARHash = nix.Hash{} }), "has a wrong length"},
		{"import of no archive", serverWriter, words(4, 1, "nix-archive-2"), "import a path"},
		{"import with a wrong mark", serverWriter, words(4, 1, chain[0].NAR, 1), "no export stream"},
		{"import of nothing known", serverWriter, words(4, 2), "no export stream"},
		{"import that stops", serverWriter, words(4, 1, chain[0].NAR, 0x4558494e), "read a request to import paths"},
	} {
		t.Run(test.name, func(t *testing.T) {
			store := nixtest.NewStore(chain[0])
			_, err := serveBytes(store, test.options, serverHello, test.said)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want one with %q", err, test.want)
			}
			if all := store.All(); len(all) != 1 {
				t.Errorf("store has %v", all)
			}
		})
	}
}

func TestServeGreeting(t *testing.T) {
	for _, test := range []struct {
		name string
		said []byte
		want string // empty: no error
	}{
		{"nobody", nil, "read the client's greeting"},
		{"shell", []byte("ls -l; exit\n"), "protocol mismatch"},
		{"worker protocol", words(0x6e697863, 0x122), "protocol mismatch"},
		{"version 1.1", words(0x390c9deb, 0x101), "version 1.1"},
		{"version 2.1", words(0x390c9deb, 0x201), ""},
		{"version 2.9", words(0x390c9deb, 0x209), ""},
		{"half a version", serverHello[:12], "unexpected EOF"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := serveBytes(nixtest.NewStore(), remote.ServerOptions{}, test.said)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want %q", err, test.want)
			}
		})
	}
}

// TestServeVersions asks as clients do that know fewer fields.
func TestServeVersions(t *testing.T) {
	o := nixtest.Chain(1)[0]
	store := nixtest.NewStore(o)
	for _, test := range []struct {
		minor   int
		options int // words of the build options
		want    []byte
	}{
		{1, 2, words(o.Info.Path, "", 0, int(o.Info.NARSize), int(o.Info.NARSize), "", 0)},
		{2, 3, words(o.Info.Path, "", 0, int(o.Info.NARSize), int(o.Info.NARSize), "", 0)},
		{3, 5, words(o.Info.Path, "", 0, int(o.Info.NARSize), int(o.Info.NARSize), "", 0)},
		{4, 5, words(o.Info.Path, "", 0, int(o.Info.NARSize), int(o.Info.NARSize), o.Info.NARHash.String(), o.Info.CA, 0, "", 0)},
		{8, 6, words(o.Info.Path, "", 0, int(o.Info.NARSize), int(o.Info.NARSize), o.Info.NARHash.String(), o.Info.CA, 0, "", 0)},
	} {
		said := words(0x390c9deb, 0x200+test.minor, 2, 1, o.Info.Path, 6, 1, o.Info.Path.String(), make([]byte, 8*test.options))
		got, err := serveBytes(store, serverWriter, said)
		if err != nil {
			t.Fatalf("2.%d: %v", test.minor, err)
		}
		if d := cmp.Diff(hexLines(got[16:]), hexLines(test.want)); d != "" {
			t.Errorf("2.%d (-got +want):\n%s", test.minor, d)
		}
	}
}

func TestServeBuild(t *testing.T) {
	drv, out := nixtest.Derivation("fixed", nixtest.Node{Content: "x"})
	options := make([]byte, 48)
	const refusal = "copy-closure only, which does not build"
	for _, test := range []struct {
		name   string
		wanted string
		store  []nixtest.Object
		ok     bool
	}{
		{"valid path", out.Info.Path.String(), []nixtest.Object{out}, true},
		{"missing path", out.Info.Path.String(), nil, false},
		{"missing derivation", drv.Info.Path.String() + "!*", nil, false},
		{"all outputs", drv.Info.Path.String() + "!*", []nixtest.Object{drv, out}, true},
		{"named output", drv.Info.Path.String() + "!out", []nixtest.Object{drv, out}, true},
		{"bare derivation", drv.Info.Path.String(), []nixtest.Object{drv, out}, true},
		{"missing output", drv.Info.Path.String() + "!out", []nixtest.Object{drv}, false},
		{"unknown output", drv.Info.Path.String() + "!dev", []nixtest.Object{drv, out}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			answer, err := serveBytes(nixtest.NewStore(test.store...), serverWriter, serverHello, words(6, 1, test.wanted, options))
			if err != nil {
				t.Fatal(err)
			}
			status := binary.LittleEndian.Uint64(answer[16:])
			if (status == 0) != test.ok || !test.ok && !strings.Contains(string(answer), refusal) {
				t.Errorf("status %d, answer %q; want success %t", status, answer[16:], test.ok)
			}
		})
	}
	t.Run("derivation", func(t *testing.T) {
		said := words(8, drv.Info.Path, 1, "out", out.Info.Path, "", "", 0, "x86_64-linux", "/bin/sh", 1, "-c", 1, "name", "value", options, 1, 0, 0, 0)
		answer, err := serveBytes(nixtest.NewStore(), serverWriter, serverHello, said)
		if err != nil {
			t.Fatal(err)
		}
		want := words(9, "this host has "+refusal+": "+drv.Info.Path.String()+" cannot be built", make([]byte, 40), 0)
		if d := cmp.Diff(hexLines(answer[16:]), hexLines(want)); d != "" {
			t.Errorf("answer (-got +want):\n%s", d)
		}
	})
}

// TestServeDamaged sends a path whose contents have changed: the client gets all
// but the end, and the error names the path.
func TestServeDamaged(t *testing.T) {
	o := nixtest.Source("large", nixtest.Node{Content: strings.Repeat("large\n", 1<<16)})
	for _, command := range [][]byte{words(3, o.Info.Path), words(5, 0, 1, o.Info.Path)} {
		store := nixtest.NewStore(o)
		store.Damage(o.Info.Path, 300)
		answer, err := serveBytes(store, remote.ServerOptions{}, serverHello, command)
		if !errors.Is(err, nix.ErrDamaged) || !strings.Contains(err.Error(), o.Info.Path.String()) {
			t.Errorf("error is %v, want that %s is damaged", err, o.Info.Path)
		}
		if len(answer) < len(o.NAR)/2 || len(answer) >= 16+len(o.NAR) {
			t.Errorf("the client got %d bytes for a NAR of %d", len(answer)-16, len(o.NAR))
		}
	}
}

// TestServeRefusal refuses the third path of a client that waits for each answer
// and does not hang up: the session ends, and what came before stays acknowledged.
func TestServeRefusal(t *testing.T) {
	chain := nixtest.Chain(3)
	wrong := nixtest.Output("wrong", "wrong", func(string) nixtest.Node { return nixtest.Node{Content: "wrong"} })
	for _, test := range []struct {
		name  string
		check func(*nix.PathInfo) error
		want  error
	}{
		{"by the check", func(info *nix.PathInfo) error {
			if info.Path == wrong.Info.Path {
				return nix.ErrNotTrusted
			}
			return nil
		}, nix.ErrNotTrusted},
		{"by the store", nil, nix.ErrDamaged},
	} {
		t.Run(test.name, func(t *testing.T) {
			store := nixtest.NewStore()
			c := startServer(t, store, remote.ServerOptions{Write: true, Check: test.check}, 7)
			for _, o := range chain {
				writeServerAdd(c.Writer, o.Info)
				c.Write(o.NAR)
			}
			info := *wrong.Info
			info.NARHash = chain[0].Info.NARHash
			writeServerAdd(c.Writer, &info)
			c.Write(wrong.NAR)
			c.flush()
			c.want(1, 1, 1)
			if c.in.Uint64(); !errors.Is(c.in.Err(), io.EOF) {
				t.Errorf("then the client reads %v, want io.EOF", c.in.Err())
			}
			err := <-c.ended
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), wrong.Info.Path.String()) {
				t.Errorf("error is %v, want %v of %s", err, test.want, wrong.Info.Path)
			}
			if d := cmp.Diff(store.All(), sorted(chain.Paths()), comparePaths); d != "" {
				t.Errorf("valid (-got +want):\n%s", d)
			}
		})
	}
}

// TestServeCancel ends a session whose client is silent.
func TestServeCancel(t *testing.T) {
	reason := errors.New("machine goes down")
	ctx, cancel := context.WithCancelCause(t.Context())
	near, far := nixtest.Pipe()
	defer near.Close()
	ended := make(chan error)
	go func() { ended <- remote.Serve(ctx, far, serverBackend{nixtest.NewStore()}, serverWriter) }()
	near.Write(serverHello)
	io.ReadFull(near, make([]byte, 16))
	cancel(reason)
	if err := <-ended; !errors.Is(err, reason) {
		t.Errorf("error is %v, want %v", err, reason)
	}
}

// A lazyBackend decides on no path before it is told to, and counts the imports
// that are open.
type lazyBackend struct {
	serverBackend
	open int
}

func (b *lazyBackend) Import(ctx context.Context) (remote.Importer, error) {
	im, err := b.Store.Import(ctx)
	b.open++
	return &lazyImporter{Importer: im, backend: b}, err
}

type lazyImporter struct {
	remote.Importer
	backend *lazyBackend

	mu        sync.Mutex
	undecided []func()
}

func (im *lazyImporter) Add(ctx context.Context, info *nix.PathInfo, nar io.Reader, done func(error)) error {
	return im.Importer.Add(ctx, info, nar, func(err error) {
		im.mu.Lock()
		defer im.mu.Unlock()
		im.undecided = append(im.undecided, func() { done(err) })
	})
}

func (im *lazyImporter) Flush(ctx context.Context) error {
	err := im.Importer.Flush(ctx)
	im.decide()
	return err
}

func (im *lazyImporter) Close() error {
	im.backend.open--
	err := im.Importer.Close()
	im.decide()
	return err
}

func (im *lazyImporter) decide() {
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, tell := range im.undecided {
		tell()
	}
	im.undecided = nil
}

// TestServeManyAdds sends more paths than may wait for a verdict at the same time.
func TestServeManyAdds(t *testing.T) {
	o := nixtest.Source("small", nixtest.Node{})
	const n = 20_000
	add := serverAddAll(nixtest.Closure{o})[16:]
	stream := &scriptedStream{in: bytes.NewReader(append(serverHello, bytes.Repeat(add, n)...))}
	backend := &lazyBackend{serverBackend: serverBackend{nixtest.NewStore()}}
	if err := remote.Serve(t.Context(), stream, backend, serverWriter); err != nil {
		t.Fatal(err)
	}
	if got := (stream.out.Len() - 16) / 8; got != n {
		t.Errorf("%d paths are acknowledged, want %d", got, n)
	}
}

// TestServeCut cuts a push after every byte. What is valid then is whole, and no
// goroutine of the session is left.
func TestServeCut(t *testing.T) {
	objects := nixtest.Diamond()
	said := serverAddAll(objects)
	for n := range len(said) {
		synctest.Test(t, func(t *testing.T) {
			near, far := nixtest.Pipe()
			defer near.Close()
			near.Write(said)
			store := nixtest.NewStore()
			backend := &lazyBackend{serverBackend: serverBackend{store}}
			err := remote.Serve(t.Context(), nixtest.CutReads(far, int64(n)), backend, serverWriter)
			if backend.open != 0 {
				t.Errorf("cut at %d: %d imports are not closed", n, backend.open)
			}
			if atBoundary := store.Verify() == nil && n == serverBoundary(objects, len(store.All())); (err == nil) != atBoundary {
				t.Errorf("cut at %d of %d: error is %v with %d paths valid", n, len(said), err, len(store.All()))
			}
		})
	}
}

// serverBoundary returns where the request to add the first n objects ends.
func serverBoundary(objects nixtest.Closure, n int) int {
	return len(serverAddAll(objects[:n]))
}

// TestServeFlip changes a bit of every byte of a push. Whatever becomes valid is
// what was sent.
func TestServeFlip(t *testing.T) {
	objects := nixtest.Chain(2)
	said := serverAddAll(objects)
	want := make(map[nix.StorePath]*nix.PathInfo)
	for _, o := range objects {
		want[o.Info.Path] = o.Info
	}
	for n := range said {
		store := nixtest.NewStore()
		near, far := nixtest.Pipe()
		near.Write(said)
		near.(interface{ CloseWrite() error }).CloseWrite()
		err := remote.Serve(t.Context(), nixtest.FlipReads(far, int64(n)), serverBackend{store}, serverWriter)
		near.Close()
		if err := store.Verify(); err != nil {
			t.Errorf("byte %d: %v", n, err)
		}
		infos, _ := store.PathInfos(t.Context(), store.All())
		if err == nil && len(infos) != len(objects) {
			t.Errorf("byte %d: no error, but only %d paths are valid", n, len(infos))
		}
		for _, info := range infos {
			if d := cmp.Diff(info, want[info.Path], nixtest.CompareInfos, cmp.FilterPath(isClaim, cmp.Ignore())); d != "" {
				t.Errorf("byte %d (-got +want):\n%s", n, d)
			}
		}
	}
}

// isClaim picks the fields that nothing but a signature could vouch for.
func isClaim(p cmp.Path) bool {
	return p.String() == "Deriver" || p.String() == "Signatures"
}

// TestServeImport takes an export stream, as of old clients.
func TestServeImport(t *testing.T) {
	objects := nixtest.Diamond()
	source := nixtest.NewStore(objects...)
	var ask bytes.Buffer
	w := wire.NewWriter(&ask)
	w.Uint64(5)
	w.Uint64(0)
	w.Paths(objects.Paths())
	w.Flush()
	export, err := serveBytes(source, remote.ServerOptions{}, serverHello, ask.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	store := nixtest.NewStore()
	answer, err := serveBytes(store, serverWriter, serverHello, words(4), export[16:], words(1, 0, 0, 1, objects.Top()))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(hexLines(answer[16:]), hexLines(words(1, 1, objects.Top()))); d != "" {
		t.Errorf("answers (-got +want):\n%s", d)
	}
	if err := store.Verify(); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff(store.All(), sorted(objects.Paths()), comparePaths); d != "" {
		t.Errorf("valid (-got +want):\n%s", d)
	}
}

// A serverSubstituter has some paths at hand.
type serverSubstituter struct {
	objects nixtest.Closure
	into    *nixtest.Store
	asked   []nix.StorePath
}

func (s *serverSubstituter) Substitute(ctx context.Context, paths []nix.StorePath) error {
	s.asked = paths
	im, err := s.into.Import(ctx)
	if err != nil {
		return err
	}
	for _, o := range s.objects {
		if err := im.Add(ctx, o.Info, bytes.NewReader(o.NAR), func(error) {}); err != nil {
			return err
		}
	}
	return errors.Join(im.Close(), errors.New("the second cache is away"))
}

func TestServeSubstitute(t *testing.T) {
	drv, out := nixtest.Derivation("fixed", nixtest.Node{Content: "x"})
	chain := nixtest.Chain(3)
	store := nixtest.NewStore(chain[0])
	substituter := &serverSubstituter{objects: chain[1:2], into: store}
	c := startServer(t, store, remote.ServerOptions{Write: true, Substituter: substituter}, 7)
	asked := append(chain.Paths(), drv.Info.Path, out.Info.Path)
	c.ask(1, []uint64{0, 1}, asked...)
	c.wantPaths(chain.Paths()[:2]...)
	c.endWell()
	want := sorted([]nix.StorePath{chain[1].Info.Path, chain[2].Info.Path, out.Info.Path})
	if d := cmp.Diff(substituter.asked, want, comparePaths); d != "" {
		t.Errorf("asked the substituter for (-got +want):\n%s", d)
	}
}

// FuzzServe says anything to a server that believes everybody. It must come to an
// end with a store that is whole.
func FuzzServe(f *testing.F) {
	for _, session := range goldenSessions() {
		var b bytes.Buffer
		w := wire.NewWriter(&b)
		session.say(w)
		w.Flush()
		f.Add(b.Bytes()[:min(b.Len(), 2000)])
	}
	f.Add(words(4, 1, nixtest.Chain(1)[0].NAR, 0x4558494e, nixtest.Chain(1).Top(), 0, "", 0, 0))
	f.Add(words(8, nixtest.Chain(1).Top(), 0, 0, "", "", 0, 0, 0, 0, 0, 0, 0, 0))
	objects := goldenObjects()
	f.Fuzz(func(t *testing.T, said []byte) {
		store := nixtest.NewStore(objects...)
		serveBytes(store, serverWriter, serverHello, said)
		if err := store.Verify(); err != nil {
			t.Error(err)
		}
	})
}

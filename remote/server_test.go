package remote_test

import (
	"bytes"
	"context"
	"errors"
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

// A serverBackend makes a store in memory one that can be served.
type serverBackend struct{ *nixtest.Store }

func (b serverBackend) Import(ctx context.Context) (remote.Importer, error) {
	return b.Store.Import(ctx)
}

var serverWriter = remote.ServerOptions{Write: true}

// A serverClient speaks to a server in the words of the protocol.
type serverClient struct {
	t *testing.T
	*wire.Writer
	in     *wire.Reader
	stream io.ReadWriteCloser
	ended  chan error
}

// startServer serves a store over a pipe, and greets as a client of version 2.minor.
func startServer(t *testing.T, s *nixtest.Store, o remote.ServerOptions, minor uint64) *serverClient {
	t.Helper()
	near, far := nixtest.Pipe()
	c := &serverClient{t: t, Writer: wire.NewWriter(near), in: wire.NewReader(near), stream: near, ended: make(chan error, 1)}
	go func() { c.ended <- remote.Serve(t.Context(), far, serverBackend{s}, o) }()
	c.Uint64(0x390c9deb)
	c.Uint64(2<<8 | minor)
	c.flush()
	c.want(0x5452eecb, 2<<8|7)
	t.Cleanup(func() { near.Close() })
	return c
}

func (c *serverClient) flush() {
	c.t.Helper()
	if err := c.Flush(); err != nil {
		c.t.Fatalf("%v; the server ended with %v", err, <-c.ended)
	}
}

// want reads integers.
func (c *serverClient) want(numbers ...uint64) {
	c.t.Helper()
	for _, want := range numbers {
		if got := c.in.Uint64(); c.in.Err() != nil || got != want {
			c.stream.Close()
			c.t.Fatalf("read %#x (error %v), want %#x; the server ended with %v", got, c.in.Err(), want, <-c.ended)
		}
	}
}

func (c *serverClient) wantPaths(want ...nix.StorePath) {
	c.t.Helper()
	got := c.in.Paths(nixtest.Dir, 1000)
	if err := c.in.Err(); err != nil {
		c.t.Fatal(err)
	}
	if d := cmp.Diff(got, sorted(want), comparePaths); d != "" {
		c.t.Fatalf("paths (-got +want):\n%s", d)
	}
}

// end hangs up and returns the server's error.
func (c *serverClient) end() error {
	c.t.Helper()
	c.flush()
	c.stream.(interface{ CloseWrite() error }).CloseWrite()
	return <-c.ended
}

func (c *serverClient) endWell() {
	c.t.Helper()
	if err := c.end(); err != nil {
		c.t.Fatal(err)
	}
}

// ask writes a command with paths.
func (c *serverClient) ask(command uint64, flags []uint64, paths ...nix.StorePath) {
	c.t.Helper()
	c.Uint64(command)
	for _, f := range flags {
		c.Uint64(f)
	}
	c.Paths(paths)
	c.flush()
}

func sorted(paths []nix.StorePath) []nix.StorePath {
	paths = slices.Clone(paths)
	slices.SortFunc(paths, nix.StorePath.Compare)
	return paths
}

var comparePaths = cmp.Comparer(func(a, b nix.StorePath) bool { return a == b })

func TestServeValidPaths(t *testing.T) {
	diamond := nixtest.Diamond()
	paths := diamond.Paths()
	for _, test := range []struct {
		name    string
		options remote.ServerOptions
		held    []nix.StorePath
	}{
		{name: "reader", options: remote.ServerOptions{}},
		{name: "reader that holds", options: remote.ServerOptions{Hold: true}, held: paths[:2]}, // those that are valid
		{name: "writer", options: serverWriter, held: paths},
	} {
		t.Run(test.name, func(t *testing.T) {
			store := nixtest.NewStore(diamond[:2]...)
			c := startServer(t, store, test.options, 7)
			c.ask(1, []uint64{1, 1}, paths...)
			c.wantPaths(paths[:2]...)
			c.endWell()
			if d := cmp.Diff(store.Held(), sorted(test.held), comparePaths); len(test.held)+len(store.Held()) > 0 && d != "" {
				t.Errorf("held (-got +want):\n%s", d)
			}
		})
	}
}

func TestServeClosure(t *testing.T) {
	diamond := nixtest.Diamond()
	drv, out := nixtest.Derivation("fixed", nixtest.Node{Content: "x"})
	store := nixtest.NewStore(append(diamond, drv, out)...)
	c := startServer(t, store, remote.ServerOptions{}, 7)
	c.ask(7, []uint64{0}, diamond.Top())
	c.wantPaths(diamond.Paths()...)
	c.ask(7, []uint64{0}, drv.Info.Path)
	c.wantPaths(drv.Info.Path)
	c.ask(7, []uint64{1}, drv.Info.Path)
	c.wantPaths(drv.Info.Path, out.Info.Path)
	c.ask(7, []uint64{0}, nixtest.Chain(1).Top())
	err := c.end()
	if !errors.Is(err, nix.ErrNotValid) || !strings.Contains(err.Error(), nixtest.Chain(1).Top().String()) {
		t.Errorf("closure of a path that is not valid: %v", err)
	}
}

// TestServeAddPipelined sends a closure without waiting and reads the answers late.
func TestServeAddPipelined(t *testing.T) {
	objects := nixtest.Random(1, 40)
	store := nixtest.NewStore(objects[:3]...)
	c := startServer(t, store, serverWriter, 7)
	for _, o := range objects {
		writeServerAdd(c.Writer, o.Info)
		c.Write(o.NAR)
	}
	c.ask(1, []uint64{0, 0}, objects.Paths()...)
	for range objects {
		c.want(1)
	}
	c.wantPaths(objects.Paths()...)
	c.endWell()
	if err := store.Verify(); err != nil {
		t.Error(err)
	}
}

// TestServeAddAndWait is what Nix's clients do: each path waits for the one before.
func TestServeAddAndWait(t *testing.T) {
	chain := nixtest.Chain(10)
	store := nixtest.NewStore()
	c := startServer(t, store, serverWriter, 7)
	for _, o := range chain {
		writeServerAdd(c.Writer, o.Info)
		c.Write(o.NAR)
		c.flush()
		c.want(1)
	}
	c.endWell()
	if d := cmp.Diff(store.All(), sorted(chain.Paths()), comparePaths); d != "" {
		t.Errorf("valid (-got +want):\n%s", d)
	}
}

func TestServeDump(t *testing.T) {
	diamond := nixtest.Diamond()
	c := startServer(t, nixtest.NewStore(diamond...), remote.ServerOptions{}, 7)
	for _, o := range diamond {
		c.Uint64(3)
		c.Path(o.Info.Path)
	}
	c.flush()
	for _, o := range diamond {
		got := make([]byte, len(o.NAR))
		if _, err := io.ReadFull(c.in.Raw(), got); err != nil || !bytes.Equal(got, o.NAR) {
			t.Fatalf("%s: NAR differs (error %v)", o.Info.Path, err)
		}
	}
	c.endWell()
}

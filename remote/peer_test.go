package remote_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/remote"
)

// A peerHost starts our server over a pipe, one for each session.
type peerHost struct {
	backend remote.Backend
	options remote.ServerOptions
	peer    remote.PeerOptions
	spoil   func(io.ReadWriteCloser) io.ReadWriteCloser // of the server's end
	servers sync.WaitGroup
	ended   chan error
}

func newPeerHost(t *testing.T, s *nixtest.Store) *peerHost {
	h := &peerHost{backend: serverBackend{s}, options: remote.ServerOptions{Write: true, Peer: true, Check: s.Check}, ended: make(chan error, 1000)}
	t.Cleanup(h.servers.Wait)
	return h
}

func (h *peerHost) Start(ctx context.Context, command string) (io.ReadWriteCloser, error) {
	near, far := nixtest.Pipe()
	if h.spoil != nil {
		far = h.spoil(far)
	}
	h.servers.Go(func() {
		h.ended <- remote.Serve(ctx, far, h.backend, h.options)
	})
	return near, nil
}

// open returns a far store that has answered.
func (h *peerHost) open(t *testing.T) *remote.Store {
	t.Helper()
	s, err := remote.Open(t.Context(), h, remote.FarEnd{Access: remote.Write}, remote.Options{StoreDir: nixtest.Dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// openPeer returns one that goes on in the peer protocol.
func (h *peerHost) openPeer(t *testing.T) *remote.Peer {
	t.Helper()
	s := h.open(t)
	if err := s.Greet(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !s.OffersPeer() {
		t.Fatal("the server does not offer the peer protocol")
	}
	p, err := s.OpenPeer(t.Context(), h.peer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// A peerStore is a store in memory that is written to, and read, by a peer.
type peerStore struct {
	*nixtest.Store
	t *testing.T
	h *peerHost
}

func (s peerStore) Import(context.Context) (nixtest.Importer, error) {
	p := s.h.openPeer(s.t)
	channel, err := p.OpenChannel()
	return &peerImport{p: p, channel: channel}, err
}

func (s peerStore) WriteNAR(ctx context.Context, w io.Writer, path nix.StorePath) error {
	infos, err := s.Store.PathInfos(ctx, []nix.StorePath{path})
	if err != nil {
		return err
	}
	if len(infos) == 0 {
		infos = []*nix.PathInfo{{Path: path, NARHash: nixtest.Chain(1)[0].Info.NARHash, NARSize: 100}}
	}
	p := s.h.openPeer(s.t)
	defer p.Close()
	return receive(ctx, p, w, infos[0])
}

func receive(ctx context.Context, p *remote.Peer, w io.Writer, info *nix.PathInfo) error {
	channel, err := p.OpenChannel()
	if err != nil {
		return err
	}
	if err := channel.Request(ctx, info, 0); err != nil {
		return err
	}
	arrival, err := channel.Next(ctx)
	if err != nil {
		return err
	}
	_, err = arrival.WriteTo(w)
	return errors.Join(err, arrival.Close())
}

// A peerImport waits at each Flush for all verdicts.
type peerImport struct {
	p       *remote.Peer
	channel *remote.Channel
	pending sync.WaitGroup
}

func (im *peerImport) Add(ctx context.Context, info *nix.PathInfo, nar io.Reader, done func(error)) error {
	im.pending.Add(1)
	return im.channel.Add(ctx, info, exactly{nar, info.NARSize}, func(err error) {
		done(err)
		im.pending.Done()
	})
}

func (im *peerImport) Flush(ctx context.Context) error {
	err := im.p.Finish(ctx)
	im.pending.Wait()
	return err
}

func (im *peerImport) Close() error {
	err := im.Flush(context.Background())
	return errors.Join(err, im.p.Close())
}

// exactly is a NAR at the head of a longer stream.
type exactly struct {
	r    io.Reader
	size int64
}

func (e exactly) WriteTo(w io.Writer) (int64, error) { return io.CopyN(w, e.r, e.size) }

func TestPeerStore(t *testing.T) {
	for _, packing := range []remote.Packing{remote.PackNever, remote.PackIfSlow, remote.PackAtOnce} {
		t.Run(fmt.Sprint("packing ", packing), func(t *testing.T) {
			nixtest.TestStore(t, func(t *testing.T, check func(*nix.PathInfo) error) nixtest.StoreUnderTest {
				s := nixtest.NewStore()
				s.Check = check
				h := newPeerHost(t, s)
				h.peer.Packing = packing
				return peerStore{s, t, h}
			})
		})
	}
}

// pushAll adds objects through channels at once and returns the first error.
func pushAll(t *testing.T, p *remote.Peer, objects nixtest.Closure, channels int) error {
	t.Helper()
	verdicts := make(chan error, len(objects))
	var all sync.WaitGroup
	for share := range slices.Chunk(objects, (len(objects)+channels-1)/channels) {
		channel, err := p.OpenChannel()
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			for i, o := range share {
				if err := channel.Add(t.Context(), o.Info, bytes.NewBuffer(o.NAR), func(err error) { verdicts <- err }); err != nil {
					for range share[i+1:] {
						verdicts <- err
					}
					return
				}
			}
		})
	}
	all.Wait()
	p.Finish(t.Context()) // its error is that of the paths
	var first error
	for range objects {
		if err := <-verdicts; first == nil {
			first = err
		}
	}
	return first
}

func TestPeerPush(t *testing.T) {
	var apart nixtest.Closure // without references, so that channels may overtake each other
	for i := range 100 {
		content := strings.Repeat(fmt.Sprint(i), 1<<(i%20))
		apart = append(apart, nixtest.Output("apart", fmt.Sprint(i), func(string) nixtest.Node {
			return nixtest.Node{Content: content}
		}))
	}
	for _, test := range []struct {
		channels int
		objects  nixtest.Closure
	}{{1, nixtest.Random(11, 120)}, {4, apart}, {16, apart}} {
		s := nixtest.NewStore()
		h := newPeerHost(t, s)
		h.peer.Packing = remote.Packing(test.channels % 3)
		p := h.openPeer(t)
		if err := pushAll(t, p, test.objects, test.channels); err != nil {
			t.Errorf("%d channels: %v", test.channels, err)
		}
		p.Close()
		if err := <-h.ended; err != nil {
			t.Errorf("%d channels: the server ends with %v", test.channels, err)
		}
		if err := s.Verify(); err != nil || len(s.All()) != len(test.objects) {
			t.Errorf("%d channels: %d paths arrived of %d, %v", test.channels, len(s.All()), len(test.objects), err)
		}
	}
}

func TestPeerPull(t *testing.T) {
	c := nixtest.Random(12, 60)
	h := newPeerHost(t, nixtest.NewStore(c...))
	h.options.Write = false
	p := h.openPeer(t)
	channel, err := p.OpenChannel()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range c {
		if err := channel.Request(t.Context(), o.Info, 0); err != nil {
			t.Fatal(err)
		}
	}
	for i, o := range c {
		arrival, err := channel.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if i%3 > 0 { // else it is skipped
			var got bytes.Buffer
			if _, err := arrival.WriteTo(&got); err != nil || !bytes.Equal(got.Bytes(), o.NAR) {
				t.Errorf("%s: its NAR differs, error %v", o.Info.Path, err)
			}
		}
		if err := arrival.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestPeerDamagedSource(t *testing.T) {
	c := nixtest.Chain(3)
	s := nixtest.NewStore(c...)
	s.Damage(c[1].Info.Path, 130)
	p := newPeerHost(t, s).openPeer(t)
	var got bytes.Buffer
	err := receive(t.Context(), p, &got, c[1].Info)
	if !errors.Is(err, nix.ErrDamaged) || !strings.Contains(err.Error(), c[1].Info.Path.String()) {
		t.Errorf("error is %v, want one of damage that names the path", err)
	}
	if got.Len() >= len(c[1].NAR) {
		t.Error("the whole of a damaged NAR arrived")
	}
}

// TestPeerSourceFails breaks off in the middle of a path; the next goes through.
func TestPeerSourceFails(t *testing.T) {
	c := nixtest.Chain(2)
	s := nixtest.NewStore()
	p := newPeerHost(t, s).openPeer(t)
	channel, err := p.OpenChannel()
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("disk on fire")
	verdict := make(chan error, 1)
	nar := io.MultiReader(bytes.NewReader(c[0].NAR[:40]), failing{broken})
	err = channel.Add(t.Context(), c[0].Info, exactly{nar, c[0].Info.NARSize}, func(err error) { verdict <- err })
	if !errors.Is(err, broken) || !errors.Is(<-verdict, broken) {
		t.Errorf("error is %v, want %v", err, broken)
	}
	if err := pushAll(t, p, c, 1); err != nil {
		t.Error(err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestPeerMayNotWrite(t *testing.T) {
	h := newPeerHost(t, nixtest.NewStore())
	h.options.Write = false
	err := pushAll(t, h.openPeer(t), nixtest.Chain(2), 1)
	if err == nil || !strings.Contains(err.Error(), "started without --write") {
		t.Errorf("error is %v, want the server's reason", err)
	}
}

// TestPeerCut cuts the stream at every byte, in both directions: each cut is an error
// and leaves nothing half valid.
func TestPeerCut(t *testing.T) {
	c := nixtest.Chain(3)
	for _, cut := range []func(io.ReadWriteCloser, int64) io.ReadWriteCloser{nixtest.CutReads, nixtest.CutWrites} {
		for at := int64(0); ; at += 7 {
			s := nixtest.NewStore()
			h := newPeerHost(t, s)
			h.spoil = func(rw io.ReadWriteCloser) io.ReadWriteCloser { return cut(rw, at) }
			far := h.open(t)
			err := far.Greet(t.Context())
			if err == nil {
				var p *remote.Peer
				if p, err = far.OpenPeer(t.Context(), h.peer); err == nil {
					err = pushAll(t, p, c, 1)
					p.Close()
				}
			}
			if bad := s.Verify(); bad != nil {
				t.Fatalf("cut at %d: %v", at, bad)
			}
			if err == nil {
				if len(s.All()) != len(c) {
					t.Fatalf("cut at %d: success, with %d paths", at, len(s.All()))
				}
				break
			}
			if at > 1<<20 {
				t.Fatalf("never succeeds: %v", err)
			}
		}
	}
}

// TestPeerGone adds paths after the far end was lost: the first is told why.
func TestPeerGone(t *testing.T) {
	h := newPeerHost(t, nixtest.NewStore())
	var far io.Closer
	h.spoil = func(rw io.ReadWriteCloser) io.ReadWriteCloser { far = rw; return rw }
	p := h.openPeer(t)
	channel, err := p.OpenChannel()
	if err != nil {
		t.Fatal(err)
	}
	far.Close()
	p.WaitGone()
	var consequence interface{ Consequence() bool }
	for i, o := range nixtest.Chain(2) {
		var told error
		added := channel.Add(t.Context(), o.Info, exactly{bytes.NewReader(o.NAR), o.Info.NARSize}, func(err error) { told = err })
		if !errors.As(added, &consequence) {
			t.Errorf("Add of path %d returns %v, want a consequence", i, added)
		}
		switch first := i == 0; {
		case told == nil:
			t.Errorf("path %d is sent", i)
		case errors.As(told, &consequence) == first:
			t.Errorf("path %d is told %v", i, told)
		case first && !strings.HasPrefix(told.Error(), "send "+o.Info.Path.String()):
			t.Errorf("path %d is told %v, want its name", i, told)
		}
	}
}

func TestPeerAbort(t *testing.T) {
	h := newPeerHost(t, nixtest.NewStore(nixtest.Chain(1)...))
	p := h.openPeer(t)
	channel, err := p.OpenChannel()
	if err != nil {
		t.Fatal(err)
	}
	arrival, err := channel.Next(t.Context()) // which was never requested
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := arrival.WriteTo(io.Discard)
		ended <- err
	}()
	channel.Abort()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("an aborted channel delivers")
		}
	case <-time.After(time.Minute):
		t.Error("a read goes on after Abort")
	}
}

// TestPeerNotAsked serves a client that does not know the peer protocol.
func TestPeerNotAsked(t *testing.T) {
	h := newPeerHost(t, nixtest.NewStore())
	h.options.Peer = false
	s := h.open(t)
	if err := s.Greet(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.OffersPeer() {
		t.Error("the server offers the peer protocol unasked")
	}
}

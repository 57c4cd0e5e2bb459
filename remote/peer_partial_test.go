package remote_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/remote"
)

// A keepingBackend keeps what comes of NARs, in memory.
type keepingBackend struct {
	serverBackend
	mu   sync.Mutex
	kept map[nix.StorePath][]byte
	hash nix.Hash
	bad  error // of reading what is kept
}

func (b *keepingBackend) Import(ctx context.Context) (remote.Importer, error) {
	im, err := b.serverBackend.Import(ctx)
	return keepingImporter{im, b}, err
}

type keepingImporter struct {
	remote.Importer
	b *keepingBackend
}

func (im keepingImporter) KeepPartials(func(*nix.PathInfo) bool) {}

func (im keepingImporter) Partial(p nix.StorePath) (nix.Hash, int64) {
	im.b.mu.Lock()
	defer im.b.mu.Unlock()
	return im.b.hash, int64(len(im.b.kept[p]))
}

func (im keepingImporter) OpenPartial(_ context.Context, info *nix.PathInfo, size int64) (io.ReadCloser, error) {
	im.b.mu.Lock()
	defer im.b.mu.Unlock()
	if int64(len(im.b.kept[info.Path])) < size {
		return nil, errors.New("so much is not kept")
	}
	r := io.Reader(bytes.NewReader(im.b.kept[info.Path][:size]))
	if im.b.bad != nil {
		r = io.MultiReader(io.LimitReader(r, size/2), iotest.ErrReader(im.b.bad))
	}
	return io.NopCloser(r), nil
}

func (im keepingImporter) Add(ctx context.Context, info *nix.PathInfo, nar io.Reader, done func(error)) error {
	var got bytes.Buffer
	err := im.Importer.Add(ctx, info, io.TeeReader(nar, &got), done)
	im.b.mu.Lock()
	defer im.b.mu.Unlock()
	if err != nil && im.b.bad == nil {
		im.b.kept[info.Path], im.b.hash = got.Bytes(), info.NARHash
	}
	return err
}

// noise is a path that no compression makes smaller.
func noise() nixtest.Object {
	random := rand.New(rand.NewPCG(1, 2))
	content := make([]byte, 3<<20)
	for i := range content {
		content[i] = byte(random.Uint32())
	}
	return nixtest.Source("noise", nixtest.Node{Content: string(content)})
}

// pushRest sends what is missing of an object, and returns the first offset.
func pushRest(t *testing.T, p *remote.Peer, o nixtest.Object) (int64, error) {
	t.Helper()
	sizes, err := p.Kept(t.Context(), []*nix.PathInfo{o.Info})
	if err != nil {
		t.Fatal(err)
	}
	channel, err := p.OpenChannel()
	if err != nil {
		t.Fatal(err)
	}
	verdict := make(chan error, 1)
	offset := sizes[o.Info.Path]
	if err := channel.AddRest(t.Context(), o.Info, offset, again(o.NAR), again(o.NAR), func(err error) { verdict <- err }); err != nil {
		return offset, err
	}
	if err := p.Finish(t.Context()); err != nil {
		return offset, err
	}
	return offset, <-verdict
}

// TestPeerGoesOnInTheMiddle cuts the connection again and again, each time a little later.
func TestPeerGoesOnInTheMiddle(t *testing.T) {
	o := noise()
	s := nixtest.NewStore()
	h := newPeerHost(t, s)
	h.backend = &keepingBackend{serverBackend: serverBackend{s}, kept: make(map[nix.StorePath][]byte)}
	var cut, before int64 = 900 << 10, 0
	h.spoil = func(stream io.ReadWriteCloser) io.ReadWriteCloser { return nixtest.CutReads(stream, cut) }
	for range 10 {
		offset, err := pushRest(t, h.openPeer(t), o)
		if err == nil {
			break
		}
		<-h.ended
		if offset > 0 && offset <= before {
			t.Errorf("went on at %d, after %d", offset, before)
		}
		before = offset
	}
	if before < 1<<20 {
		t.Errorf("the last attempt began at %d", before)
	}
	if err := s.Verify(); err != nil || len(s.All()) != 1 {
		t.Errorf("%d paths are valid: %v", len(s.All()), err)
	}
}

func TestPeerPartialOfNoUse(t *testing.T) {
	o := noise()
	wrong := bytes.Clone(o.NAR[:1<<20])
	wrong[1<<19]++
	for _, test := range []struct {
		name string
		kept []byte
		bad  error
	}{
		{"right", o.NAR[:1<<20], nil},
		{"wrong", wrong, nil},
		{"no NAR", make([]byte, 1<<20), nil},
		{"cannot be read", o.NAR[:1<<20], errors.New("disk on fire")},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := nixtest.NewStore()
			h := newPeerHost(t, s)
			h.backend = &keepingBackend{
				serverBackend: serverBackend{s},
				kept:          map[nix.StorePath][]byte{o.Info.Path: test.kept}, hash: o.Info.NARHash, bad: test.bad,
			}
			if offset, err := pushRest(t, h.openPeer(t), o); err != nil || offset != 1<<20 {
				t.Errorf("went on at %d: %v", offset, err)
			}
			if err := s.Verify(); err != nil || len(s.All()) != 1 {
				t.Errorf("%d paths are valid: %v", len(s.All()), err)
			}
		})
	}
}

// TestPeerPartialNotOffered goes on where the far end has nothing.
func TestPeerPartialNotOffered(t *testing.T) {
	o := noise()
	for _, keeps := range []bool{false, true} {
		s := nixtest.NewStore()
		h := newPeerHost(t, s)
		if keeps {
			h.backend = &keepingBackend{serverBackend: serverBackend{s}, kept: make(map[nix.StorePath][]byte)}
		}
		p := h.openPeer(t)
		channel, err := p.OpenChannel()
		if err != nil {
			t.Fatal(err)
		}
		verdict := make(chan error, 1)
		channel.AddRest(t.Context(), o.Info, 1<<20, again(o.NAR), again(o.NAR), func(err error) { verdict <- err })
		p.Finish(t.Context())
		if err := <-verdict; keeps && err != nil || !keeps && (err == nil || !strings.Contains(err.Error(), "not offered")) {
			t.Errorf("it keeps partial paths: %t: %v", keeps, err)
		}
	}
}

package remote_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/delta"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/remote"
)

// A baseBackend is a store in memory with archives for bases.
type baseBackend struct {
	serverBackend
	damage bool // what it gives for a base is not
}

func (b baseBackend) AllPaths(context.Context) ([]nix.StorePath, error) { return b.All(), nil }

func (b baseBackend) OpenArchive(ctx context.Context, p nix.StorePath) (remote.Archive, error) {
	var content bytes.Buffer
	err := b.WriteNAR(ctx, &content, p)
	if b.damage {
		copy(content.Bytes()[130:], "damage")
	}
	return archive{bytes.NewReader(content.Bytes())}, err
}

type archive struct{ *bytes.Reader }

func (archive) Close() error { return nil }

// upgrade returns a path and one of the same name with other contents, both large.
func upgrade() (before, after nixtest.Object) {
	text := strings.Repeat("all work and no play makes a dull store path\n", 40000)
	make := func(seed, content string) nixtest.Object {
		return nixtest.Output(seed, "program-1.0", func(string) nixtest.Node { return nixtest.Node{Content: content} })
	}
	return make("before", text), make("after", text[:1000000]+"but for this"+text[1000000:])
}

// encoderOf computes deltas against the object.
func encoderOf(base nixtest.Object, want *nix.PathInfo) remote.Encoder {
	return func(w io.Writer, nar io.Reader) error {
		_, err := delta.Encode(w, bytes.NewReader(base.NAR), delta.MapReferences(base.Info, want), nar, delta.Options{})
		return err
	}
}

// pushPatch sends after as a delta against what the far end offers for it.
func pushPatch(t *testing.T, p *remote.Peer, after nixtest.Object, encode remote.Encoder) error {
	t.Helper()
	bases, err := p.Bases(t.Context(), []nix.StorePath{after.Info.Path})
	if err != nil {
		t.Fatal(err)
	}
	base, ok := bases[after.Info.Path]
	if !ok {
		t.Fatal("no base is offered")
	}
	channel, err := p.OpenChannel()
	if err != nil {
		t.Fatal(err)
	}
	verdict := make(chan error, 1)
	nar := again(after.NAR)
	if err := channel.AddPatch(t.Context(), after.Info, remote.Patch{Base: base.Path, Encode: encode, Whole: nar}, nar, func(err error) { verdict <- err }); err != nil {
		return err
	}
	if err := p.Finish(t.Context()); err != nil {
		return err
	}
	return <-verdict
}

// again is a NAR that can be written more than once.
type again []byte

func (a again) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(a)
	return int64(n), err
}

func TestPeerPatch(t *testing.T) {
	before, after := upgrade()
	other := encoderOf(nixtest.Output("other", "other", func(string) nixtest.Node { return nixtest.Node{Content: "other"} }), after.Info)
	for _, test := range []struct {
		name    string
		damage  bool
		encode  remote.Encoder
		inOrder error // where the whole cannot come later
	}{
		{"fits", false, encoderOf(before, after.Info), nil},
		{"base is damaged there", true, encoderOf(before, after.Info), remote.ErrDelta},
		{"for another base", false, other, remote.ErrDelta},
		{"no delta", false, func(w io.Writer, nar io.Reader) error {
			_, err := w.Write([]byte("nonsense"))
			return err
		}, remote.ErrDelta},
		{"cannot be made", false, func(w io.Writer, nar io.Reader) error { return errors.New("out of ideas") }, nil},
		{"longer than the whole", false, func(w io.Writer, nar io.Reader) error {
			_, err := w.Write(slices.Concat(after.NAR, after.NAR))
			return err
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := nixtest.NewStore(before)
			h := newPeerHost(t, s)
			h.backend = baseBackend{serverBackend{s}, test.damage}
			if err := pushPatch(t, h.openPeer(t), after, test.encode); err != nil {
				t.Error(err)
			}
			if err := s.Verify(); err != nil || len(s.All()) != 2 {
				t.Errorf("%d paths are valid: %v", len(s.All()), err)
			}
			s = nixtest.NewStore(before)
			h = newPeerHost(t, s)
			h.backend = baseBackend{serverBackend{s}, test.damage}
			h.options.InOrder = true
			p := h.openPeer(t)
			if _, err := p.OpenChannel(); err != nil { // the order is that of whichever channel is used
				t.Fatal(err)
			}
			if err := pushPatch(t, p, after, test.encode); !errors.Is(err, test.inOrder) {
				t.Errorf("in order: error is %v, want %v", err, test.inOrder)
			}
			if err := s.Verify(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPeerPatchSourceFails has the NAR itself fail: that is the error, and no retry.
func TestPeerPatchSourceFails(t *testing.T) {
	before, after := upgrade()
	s := nixtest.NewStore(before)
	h := newPeerHost(t, s)
	h.backend = baseBackend{serverBackend{s}, false}
	p := h.openPeer(t)
	bases, err := p.Bases(t.Context(), []nix.StorePath{after.Info.Path})
	if err != nil {
		t.Fatal(err)
	}
	channel, err := p.OpenChannel()
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("disk on fire")
	nar := exactly{io.MultiReader(bytes.NewReader(after.NAR[:500]), failing{broken}), after.Info.NARSize}
	verdict := make(chan error, 1)
	patch := remote.Patch{Base: bases[after.Info.Path].Path, Encode: encoderOf(before, after.Info), Whole: again(after.NAR)}
	err = channel.AddPatch(t.Context(), after.Info, patch, nar, func(err error) { verdict <- err })
	if !errors.Is(err, broken) || !errors.Is(<-verdict, broken) {
		t.Errorf("error is %v, want %v", err, broken)
	}
}

func TestPeerSignature(t *testing.T) {
	before, after := upgrade()
	s := nixtest.NewStore(before)
	h := newPeerHost(t, s)
	h.backend = baseBackend{serverBackend{s}, false}
	p := h.openPeer(t)
	bases, err := p.Bases(t.Context(), []nix.StorePath{after.Info.Path})
	if err != nil {
		t.Fatal(err)
	}
	channel, err := p.OpenChannel()
	if err != nil {
		t.Fatal(err)
	}
	if err := channel.Signature(bases[after.Info.Path].Path, after.Info); err != nil {
		t.Fatal(err)
	}
	arrival, err := channel.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	signature, err := delta.ReadSignature(arrival.Reader())
	if err != nil {
		t.Fatal(err)
	}
	arrival.Close()
	sent := 0
	err = pushPatch(t, p, after, func(w io.Writer, nar io.Reader) error {
		stats, err := delta.EncodeAgainst(w, signature, nar, delta.Options{})
		sent = int(stats.Delta)
		return err
	})
	if err != nil || sent > len(after.NAR)/20 {
		t.Errorf("a delta of %d bytes for %d, error %v", sent, len(after.NAR), err)
	}
}

// TestPeerBaseNotOffered takes a path for a base that the far end has, without asking.
func TestPeerBaseNotOffered(t *testing.T) {
	before, after := upgrade()
	s := nixtest.NewStore(before)
	h := newPeerHost(t, s)
	h.backend = baseBackend{serverBackend{s}, false}
	p := h.openPeer(t)
	channel, err := p.OpenChannel()
	if err != nil {
		t.Fatal(err)
	}
	verdict := make(chan error, 1)
	patch := remote.Patch{Base: before.Info.Path, Encode: encoderOf(before, after.Info), Whole: again(after.NAR)}
	channel.AddPatch(t.Context(), after.Info, patch, again(after.NAR), func(err error) { verdict <- err })
	p.Finish(t.Context())
	if err := <-verdict; err == nil || !strings.Contains(err.Error(), "not offered") {
		t.Errorf("error is %v", err)
	}
}

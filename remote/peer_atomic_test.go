package remote_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/remote"
)

// An atomicBackend notes how many paths belong together.
type atomicBackend struct {
	serverBackend
	paths int
	err   error
}

func (b *atomicBackend) Import(ctx context.Context) (remote.Importer, error) {
	im, err := b.serverBackend.Import(ctx)
	return atomicImporter{im, b}, err
}

type atomicImporter struct {
	remote.Importer
	b *atomicBackend
}

func (im atomicImporter) Atomic(paths int) error {
	im.b.paths = paths
	return im.b.err
}

func TestPeerAtomic(t *testing.T) {
	c := nixtest.Chain(3)
	tooMany := errors.New("too many at once")
	cases := []struct {
		name    string
		offered bool
		err     error
		first   nixtest.Closure // sent before that is said
		paths   int
		want    string // what the session ends with
	}{
		{"together", true, nil, nil, 3, ""},
		{"refused", true, tooMany, nil, 3, tooMany.Error()},
		{"none", true, nil, nil, 0, "no paths shall become valid together"},
		{"too late", true, nil, c[:1], 3, "behind the first of them"},
		{"not offered", false, nil, nil, 3, "was not offered"},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			h := newPeerHost(t, nixtest.NewStore())
			b := &atomicBackend{serverBackend: h.backend.(serverBackend), err: test.err}
			if test.offered {
				h.backend, h.options.Atomic = b, true
			}
			s := h.open(t)
			if s.OffersAtomic() {
				t.Error("it is known before the first answer")
			}
			if err := s.Greet(t.Context()); err != nil || s.OffersAtomic() != test.offered {
				t.Fatalf("offered: %t, want %t (%v)", s.OffersAtomic(), test.offered, err)
			}
			p, err := s.OpenPeer(t.Context(), h.peer)
			if err != nil {
				t.Fatal(err)
			}
			if len(test.first) > 0 {
				if err := pushAll(t, p, test.first, 1); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Atomic(test.paths); err != nil {
				t.Error(err)
			}
			err = pushAll(t, p, c[len(test.first):], 1)
			p.Close()
			ended := <-h.ended
			if test.want == "" {
				if err != nil || ended != nil || b.paths != test.paths {
					t.Errorf("push: %v; the server: %v; %d paths together, want %d", err, ended, b.paths, test.paths)
				}
				return
			}
			if ended == nil || !strings.Contains(ended.Error(), test.want) || err == nil {
				t.Errorf("push: %v; the server: %v, want %q", err, ended, test.want)
			}
		})
	}
}

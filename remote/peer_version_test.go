package remote_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/internal/wire"
	"github.com/copy-closure/copy-closure/remote"
)

// TestPeerNewerServer has servers that are newer than this client, in their version or in
// what they offer: the client speaks the version that it knows, and knows what it knows.
func TestPeerNewerServer(t *testing.T) {
	for _, test := range []struct {
		offer   string
		offers  bool
		inOrder bool
	}{
		{"@copy-closure-peer 1", true, false},
		{"@copy-closure-peer 2", true, false},
		{"@copy-closure-peer 2 shiny in-order join=no-hex level=9", true, true},
		{"@copy-closure-peer 4000000000 atomic", true, false},
		{"@copy-closure-peer 0", false, false},
		{"@copy-closure-peer shiny", false, false},
		{"@copy-closure-peer", false, false},
	} {
		t.Run(test.offer, func(t *testing.T) {
			near, far := nixtest.Pipe()
			defer far.Close()
			fmt.Fprintln(far, test.offer)
			w := wire.NewWriter(far)
			w.Uint64(0x5452eecb)
			w.Uint64(2<<8 | 7)
			w.Flush()
			s, err := remote.Open(t.Context(), hostOf{near}, remote.FarEnd{}, remote.Options{StoreDir: nixtest.Dir})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if err := s.Greet(t.Context()); err != nil {
				t.Fatal(err)
			}
			if s.OffersPeer() != test.offers {
				t.Errorf("it offers the protocol: %t", s.OffersPeer())
			}
			if !test.offers {
				return
			}
			p, err := s.OpenPeer(t.Context(), remote.PeerOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if p.InOrder() != test.inOrder {
				t.Errorf("in order: %t", p.InOrder())
			}
			said := make([]byte, 2*8+2*8)
			if _, err := io.ReadFull(far, said); err != nil {
				t.Fatal(err)
			}
			if version := binary.LittleEndian.Uint64(said[24:]); version != 1 {
				t.Errorf("the client asks for version %d, want 1", version)
			}
			p.Abort()
		})
	}
}

// TestPeerNewerClient has clients ask for versions that this server does not speak.
func TestPeerNewerClient(t *testing.T) {
	for _, version := range []uint64{0, 2, 1 << 40} {
		h := newPeerHost(t, nixtest.NewStore())
		near, err := h.Start(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		w := wire.NewWriter(near)
		for _, n := range []uint64{0x390c9deb, 2<<8 | 7, 0x72656570, version, 4 << 20, 0} {
			w.Uint64(n)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := <-h.ended; err == nil || !strings.Contains(err.Error(), fmt.Sprintf("version %d of the peer protocol", version)) {
			t.Errorf("version %d: the server ends with %v", version, err)
		}
	}
}

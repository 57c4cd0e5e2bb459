package remote_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/delta"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/remote"
)

// signatureOf signs the object as it is with the references of want.
func signatureOf(base nixtest.Object, want *nix.PathInfo) func(io.Writer) error {
	return func(w io.Writer) error {
		return delta.Sign(w, bytes.NewReader(base.NAR), delta.MapReferences(base.Info, want))
	}
}

// readUpdate makes a NAR of what comes and the base.
func readUpdate(t *testing.T, channel *remote.Channel, base, want nixtest.Object) (nar []byte, isDelta bool, err error) {
	t.Helper()
	arrival, err := channel.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer arrival.Close()
	if isDelta, err = arrival.IsDelta(); err != nil {
		return nil, false, err
	}
	var got bytes.Buffer
	if !isDelta {
		_, err = arrival.WriteTo(&got)
		return got.Bytes(), false, err
	}
	err = delta.Decode(&got, bytes.NewReader(base.NAR), delta.MapReferences(base.Info, want.Info), arrival.Reader(), want.Info.NARSize)
	return got.Bytes(), true, err
}

// A lyingBackend tells another NAR hash of a path than it has.
type lyingBackend struct {
	baseBackend
	path nix.StorePath
}

func (b lyingBackend) PathInfos(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error) {
	infos, err := b.baseBackend.PathInfos(ctx, paths)
	for _, info := range infos {
		if info.Path == b.path {
			info.NARHash = nix.SHA256Hash([32]byte{1})
		}
	}
	return infos, err
}

func TestPeerCommon(t *testing.T) {
	before, after := upgrade()
	c := nixtest.Chain(1)[0]
	s := nixtest.NewStore(before, c)
	h := newPeerHost(t, s)
	h.options.Write = false
	h.backend = lyingBackend{baseBackend{serverBackend{s}, false}, c.Info.Path}
	common, err := h.openPeer(t).Common(t.Context(), []*nix.PathInfo{c.Info, before.Info, after.Info})
	if err != nil {
		t.Fatal(err)
	}
	if common[c.Info.Path] || !common[before.Info.Path] || common[after.Info.Path] {
		t.Errorf("got %v", common)
	}
	held := fmt.Sprint(s.Held())
	if !strings.Contains(held, before.Info.Path.String()) || strings.Contains(held, after.Info.Path.String()) {
		t.Errorf("it holds %s", held)
	}
}

// TestPeerUpdate pulls a path of which there is an older one, twice in a row, and another
// one behind it. What comes of a base that is damaged over there is wrong, as the NAR hash
// tells.
func TestPeerUpdate(t *testing.T) {
	before, after := upgrade()
	other := nixtest.Chain(1)[0]
	sign := signatureOf(before, after.Info)
	long := func(w io.Writer) error {
		_, err := w.Write(make([]byte, remote.MaxRequestSignature+1))
		return err
	}
	for _, test := range []struct {
		name   string
		there  []nixtest.Object
		damage bool
		sign   func(io.Writer) error // nil: the base is to be there
		delta  bool
		wrong  bool
	}{
		{"base is there", []nixtest.Object{before, after, other}, false, nil, true, false},
		{"base is not there", []nixtest.Object{after, other}, false, nil, false, false},
		{"base is damaged there", []nixtest.Object{before, after, other}, true, nil, true, true},
		{"with a signature", []nixtest.Object{after, other}, false, sign, true, false},
		{"signature of another base", []nixtest.Object{after, other}, false, signatureOf(other, after.Info), true, true},
		{"no signature", []nixtest.Object{after, other}, false, func(io.Writer) error { return errors.New("disk on fire") }, false, false},
		{"damaged signature", []nixtest.Object{after, other}, false, func(w io.Writer) error {
			_, err := io.WriteString(w, strings.Repeat("nonsense", 30000))
			return err
		}, false, false},
		{"half a signature", []nixtest.Object{after, other}, false, func(w io.Writer) error {
			var all bytes.Buffer
			sign(&all)
			_, err := w.Write(all.Bytes()[:all.Len()/2])
			return err
		}, false, false},
		{"signature that is too long", []nixtest.Object{after, other}, false, long, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := nixtest.NewStore(test.there...)
			h := newPeerHost(t, s)
			h.options.Write = false
			h.backend = baseBackend{serverBackend{s}, test.damage}
			p := h.openPeer(t)
			if _, err := p.Common(t.Context(), []*nix.PathInfo{before.Info}); err != nil {
				t.Fatal(err)
			}
			channel, err := p.OpenChannel()
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if test.sign == nil {
					err = channel.RequestUpdate(after.Info, before.Info.Path, false)
				} else {
					err = channel.RequestUpdateOf(after.Info, test.sign, true)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := channel.Request(t.Context(), other.Info, 0); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				nar, isDelta, err := readUpdate(t, channel, before, after)
				if right := err == nil && bytes.Equal(nar, after.NAR); right == test.wrong || isDelta != test.delta {
					t.Errorf("%d bytes, a delta: %t, right: %t, error %v", len(nar), isDelta, right, err)
				}
			}
			arrival, err := channel.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if _, err := arrival.WriteTo(&got); err != nil || !bytes.Equal(got.Bytes(), other.NAR) {
				t.Errorf("the path behind has %d bytes, error %v", got.Len(), err)
			}
		})
	}
}

// TestPeerUpdateDamagedSource has the wanted path itself be damaged.
func TestPeerUpdateDamagedSource(t *testing.T) {
	before, after := upgrade()
	s := nixtest.NewStore(after)
	s.Damage(after.Info.Path, 1000)
	h := newPeerHost(t, s)
	h.backend = baseBackend{serverBackend{s}, false}
	channel, err := h.openPeer(t).OpenChannel()
	if err != nil {
		t.Fatal(err)
	}
	channel.RequestUpdate(after.Info, before.Info.Path, false)
	channel.RequestUpdateOf(after.Info, signatureOf(before, after.Info), false)
	if _, _, err := readUpdate(t, channel, before, after); !errors.Is(err, nix.ErrDamaged) {
		t.Errorf("error is %v, want one of damage", err)
	}
	if nar, isDelta, err := readUpdate(t, channel, before, after); !isDelta || err != nil || bytes.Equal(nar, after.NAR) {
		t.Errorf("a delta: %t, right: %t, error %v", isDelta, bytes.Equal(nar, after.NAR), err)
	}
}

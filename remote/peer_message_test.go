package remote

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// samplePathInfos have all that a path info can have, or little.
func samplePathInfos() []*nix.PathInfo {
	infos := nixtest.Random(4, 20).Infos()
	infos[3].Deriver = infos[2].Path
	infos[3].Signatures = []string{nixtest.Signature("a-1"), nixtest.Signature("b-1")}
	infos[3].Registered = time.Unix(1700000000, 0)
	infos[4].CA = "fixed:r:sha256:abc"
	return infos
}

func TestPathInfoMessage(t *testing.T) {
	for _, info := range samplePathInfos() {
		p := payload{b: appendPathInfo(nil, info)}
		got := p.pathInfo(nixtest.Dir)
		if err := p.end(); err != nil {
			t.Errorf("%s: %v", info.Path, err)
		} else if d := cmp.Diff(got, info, nixtest.CompareInfos); d != "" {
			t.Errorf("%s (-got +want):\n%s", info.Path, d)
		}
	}
}

func TestHostileMessages(t *testing.T) {
	long := binary.AppendUvarint([]byte{msgData}, maxData+100)
	for name, stream := range map[string]string{
		"data too long":       string(long),
		"message too long":    string(binary.AppendUvarint([]byte{msgAdd}, maxMessage+1)),
		"length in long form": "\x04\x80\x00",
		"length too large":    "\x04" + strings.Repeat("\xff", 11),
	} {
		_, err := newMessageReader(strings.NewReader(stream)).next()
		if _, ok := errors.AsType[*wire.FormatError](err); !ok {
			t.Errorf("%s: error is %v, want a *wire.FormatError", name, err)
		}
	}
	for _, cut := range []string{"\x04", "\x04\x05", "\x04\x05abc"} {
		if _, err := newMessageReader(strings.NewReader(cut)).next(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut message %q: error is %v", cut, err)
		}
	}
}

func FuzzPathInfoMessage(f *testing.F) {
	for _, info := range samplePathInfos() {
		f.Add(appendPathInfo(nil, info))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p := payload{b: b}
		info := p.pathInfo(nixtest.Dir)
		if p.end() != nil {
			return
		}
		encoded := appendPathInfo(nil, info)
		if bytes.Equal(encoded, b) {
			return
		}
		// Signatures were dropped, and nothing else.
		again := payload{b: encoded}
		if got := again.pathInfo(nixtest.Dir); again.end() != nil || !reflect.DeepEqual(got, info) || len(encoded) >= len(b) {
			t.Errorf("%x is accepted and re-encodes as %x", b, encoded)
		}
	})
}

// TestTooManySignatures has a peer send more signatures than a path may have.
func TestTooManySignatures(t *testing.T) {
	info := samplePathInfos()[3]
	info.Signatures = []string{"evil-1:AAAA"}
	for i := range 3000 {
		info.Signatures = append(info.Signatures, nixtest.Signature(fmt.Sprint("evil-", i)))
	}
	p := payload{b: appendPathInfo(nil, info)}
	got := p.pathInfo(nixtest.Dir)
	if err := p.end(); err != nil || len(got.Signatures) != nix.MaxSignatures || got.Signatures[0] != info.Signatures[1] {
		t.Errorf("%d signatures, %v", len(got.Signatures), err)
	}
}

func TestOffer(t *testing.T) {
	token := bytes.Repeat([]byte{7}, tokenSize)
	for _, o := range []offer{
		{version: 1}, {version: 2, inOrder: true}, {version: 1, refuses: true, atomic: true}, {version: 1, foresees: true},
		{version: 1, token: token}, {version: 1, room: &Room{Bytes: 5, Files: 7}}, {version: 1, room: &Room{Bytes: 5, FileSystem: "zfs"}},
	} {
		line, ok := strings.CutPrefix(o.line(), offerMarker)
		if got := parseOffer(line); !ok || !reflect.DeepEqual(got, o) {
			t.Errorf("%q is read as %+v", o.line(), got)
		}
	}
	for _, text := range []string{"", "x", "0", "-1", "join=00"} {
		if got := parseOffer(text); got.version != 0 {
			t.Errorf("%q is read as %+v, want nothing", text, got)
		}
	}
	if got := parseOffer("1 later join=zz room=-1,2,x room=many"); got.version != 1 || got.token != nil || got.room != nil {
		t.Errorf("unknown words: %+v", got)
	}
}

package remote

import (
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// newTestPeer returns a client, and what writes to it as its server would.
func newTestPeer(t *testing.T) (*Peer, *messageWriter) {
	lanes := newPair(t, maxFrame)
	lanes.join(nil)
	p := &Peer{
		dir: nixtest.Dir, log: slog.New(slog.DiscardHandler), store: &Store{sessions: new(sessions)},
		bundle: lanes.a, adds: make(map[uint64]*peerAdd), gone: make(chan struct{}), inboxes: newInboxes(),
	}
	p.out.bundle = p.bundle
	p.decided = sync.NewCond(&p.mu)
	var receiving sync.WaitGroup
	receiving.Go(p.receive)
	t.Cleanup(func() { lanes.end(); receiving.Wait() })
	return p, &messageWriter{bundle: lanes.b}
}

// TestPeerHostileServer has a server answer the request for an update.
func TestPeerHostileServer(t *testing.T) {
	object := nixtest.Chain(1)[0]
	size := int(object.Info.NARSize)
	for _, test := range []struct {
		name   string
		answer func(w *messageWriter)
		want   string // in the error
	}{
		{"endless delta", func(w *messageWriter) {
			w.send(msgData, []byte{0, answersDelta}, nil)
			for w.sendNow(msgData, append([]byte{0}, make([]byte, 100)...)) == nil {
			}
		}, "more than was asked for"},
		{"longer than the NAR", func(w *messageWriter) {
			w.sendNow(msgData, append([]byte{0, answersNAR}, make([]byte, size+1)...))
		}, "more than was asked for"},
		{"neither NAR nor delta", func(w *messageWriter) { w.sendNow(msgData, []byte{0, 2}) }, "something else than a NAR"},
		{"nothing", func(w *messageWriter) { w.sendNow(msgEnd, []byte{0}) }, "unexpected EOF"},
		{"given up", func(w *messageWriter) { w.sendNow(msgAbort, appendText([]byte{0}, "no idea")) }, "no idea"},
		{"one more", func(w *messageWriter) {
			w.send(msgEnd, []byte{0}, nil)
			w.sendNow(msgData, []byte{0, answersNAR})
		}, "not asked for"},
		{"bases that nobody asked for", func(w *messageWriter) { w.sendNow(msgThere, []byte{1}) }, "not asked about"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, w := newTestPeer(t)
			channel, err := p.OpenChannel()
			if err != nil {
				t.Fatal(err)
			}
			if err := channel.RequestUpdate(object.Info, object.Info.Path, true); err != nil {
				t.Fatal(err)
			}
			var answering sync.WaitGroup
			answering.Go(func() { test.answer(w) })
			for err == nil {
				var arrival *Arrival
				if arrival, err = channel.Next(t.Context()); err == nil {
					if _, err = arrival.IsDelta(); err == nil {
						_, err = io.Copy(io.Discard, arrival.Reader())
					}
				}
				if test.name == "one more" && errors.Is(err, io.ErrUnexpectedEOF) {
					err = nil
				}
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want one with %q", err, test.want)
			}
			p.Abort()
			answering.Wait()
		})
	}
}

// TestPeerHostileThere has a server answer Common.
func TestPeerHostileThere(t *testing.T) {
	infos := []*nix.PathInfo{nixtest.Chain(1)[0].Info}
	for answer, valid := range map[string]bool{"\x00": true, "\x01": true, "": false, "\x02": false, "\x01\x01": false} {
		p, w := newTestPeer(t)
		var answering sync.WaitGroup
		answering.Go(func() {
			if m, err := newMessageReader(w.bundle).next(); err == nil && m.kind == msgCommon {
				w.sendNow(msgThere, []byte(answer))
			}
		})
		common, err := p.Common(t.Context(), infos)
		answering.Wait()
		var format *wire.FormatError
		if valid && (err != nil || common[infos[0].Path] != (answer == "\x01")) || !valid && !errors.As(err, &format) {
			t.Errorf("%q: got %v, error %v", answer, common, err)
		}
	}
}

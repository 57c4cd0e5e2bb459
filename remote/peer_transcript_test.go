package remote_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/internal/delta"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/remote"
)

var updatePeer = flag.Bool("update-peer", false, "record the transcripts of the peer protocol anew")

// peerTranscripts has the directory of each released version of the protocol.
var peerTranscripts = []string{"peer-v1"}

// A peerStory is what a client does in one session. Each step returns when it has the
// server's answers.
type peerStory struct {
	name    string
	packing remote.Packing
	server  func(h *peerHost)
	have    nixtest.Closure // of the server
	gets    nixtest.Closure
	steps   []func(t *testing.T, p *remote.Peer) error
}

func peerStories() []peerStory {
	objects := append(goldenObjects()[:6:6], nixtest.Flat("flat", "flat\n"))
	before, after := upgrade()
	rest := noise()
	const kept = 3 << 20
	push := []func(t *testing.T, p *remote.Peer) error{
		func(t *testing.T, p *remote.Peer) error { return pushAll(t, p, objects, 1) },
	}
	return []peerStory{
		{name: "push", gets: objects, steps: push},
		{name: "push-packed", gets: objects, packing: remote.PackAtOnce, steps: push},
		{
			name: "push-atomic", gets: objects,
			server: func(h *peerHost) {
				h.backend, h.options.Atomic = &atomicBackend{serverBackend: h.backend.(serverBackend)}, true
			},
			steps: []func(t *testing.T, p *remote.Peer) error{func(t *testing.T, p *remote.Peer) error {
				return errors.Join(p.Atomic(len(objects)), pushAll(t, p, objects, 1))
			}},
		},
		{
			name: "push-rest", gets: nixtest.Closure{rest}, packing: remote.PackAtOnce,
			server: func(h *peerHost) {
				h.backend = &keepingBackend{serverBackend: h.backend.(serverBackend), hash: rest.Info.NARHash,
					kept: map[nix.StorePath][]byte{rest.Info.Path: rest.NAR[:kept]}}
			},
			steps: pushInSteps(rest, kept),
		},
		{
			name: "push-delta", have: nixtest.Closure{before}, gets: nixtest.Closure{after}, packing: remote.PackAtOnce,
			server: serveBases, steps: pushDelta(before, after),
		},
		{
			name: "push-against-signature", have: nixtest.Closure{before}, gets: nixtest.Closure{after},
			server: serveBases, steps: pushAgainstSignature(before, after),
		},
		{
			name: "pull", have: objects, packing: remote.PackAtOnce,
			steps: []func(t *testing.T, p *remote.Peer) error{func(t *testing.T, p *remote.Peer) error {
				return pullAll(t, p, objects)
			}},
		},
		{
			name: "pull-delta", have: nixtest.Closure{before, after}, packing: remote.PackAtOnce,
			server: serveBases,
			steps: []func(t *testing.T, p *remote.Peer) error{
				func(t *testing.T, p *remote.Peer) error {
					_, err := p.Common(t.Context(), []*nix.PathInfo{before.Info})
					return err
				},
				pullUpdate(before, after, func(channel *remote.Channel) error {
					return channel.RequestUpdate(after.Info, before.Info.Path, false)
				}),
			},
		},
		{
			name: "pull-against-signature", have: nixtest.Closure{after},
			server: serveBases,
			steps: []func(t *testing.T, p *remote.Peer) error{
				pullUpdate(before, after, func(channel *remote.Channel) error {
					return channel.RequestUpdateOf(after.Info, signatureOf(before, after.Info), false)
				}),
			},
		},
	}
}

// pullUpdate gets after as a delta against before.
func pullUpdate(before, after nixtest.Object, request func(*remote.Channel) error) func(t *testing.T, p *remote.Peer) error {
	return func(t *testing.T, p *remote.Peer) error {
		channel, err := p.OpenChannel()
		if err != nil {
			return err
		}
		if err := request(channel); err != nil {
			return err
		}
		nar, isDelta, err := readUpdate(t, channel, before, after)
		if err == nil && (!isDelta || !bytes.Equal(nar, after.NAR)) {
			err = errors.New("what came is no delta, or makes something else")
		}
		return err
	}
}

func serveBases(h *peerHost) { h.backend = baseBackend{h.backend.(serverBackend), false} }

// pushInSteps goes on with a path of which the server has kept the beginning.
func pushInSteps(o nixtest.Object, kept int64) []func(t *testing.T, p *remote.Peer) error {
	return []func(t *testing.T, p *remote.Peer) error{
		func(t *testing.T, p *remote.Peer) error {
			sizes, err := p.Kept(t.Context(), []*nix.PathInfo{o.Info})
			if err == nil && sizes[o.Info.Path] != kept {
				err = fmt.Errorf("%d bytes are kept, want %d", sizes[o.Info.Path], kept)
			}
			return err
		},
		func(t *testing.T, p *remote.Peer) error {
			return addOne(t, p, func(channel *remote.Channel, done func(error)) error {
				return channel.AddRest(t.Context(), o.Info, kept, again(o.NAR), again(o.NAR), done)
			})
		},
	}
}

func addOne(t *testing.T, p *remote.Peer, add func(*remote.Channel, func(error)) error) error {
	channel, err := p.OpenChannel()
	if err != nil {
		return err
	}
	verdict := make(chan error, 1)
	if err := add(channel, func(err error) { verdict <- err }); err != nil {
		return err
	}
	return errors.Join(p.Finish(t.Context()), <-verdict)
}

func askForBase(t *testing.T, p *remote.Peer, base, want nixtest.Object) error {
	bases, err := p.Bases(t.Context(), []nix.StorePath{want.Info.Path})
	if err == nil && bases[want.Info.Path].NARHash != base.Info.NARHash {
		err = errors.New("the base is not offered")
	}
	return err
}

func pushDelta(base, want nixtest.Object) []func(t *testing.T, p *remote.Peer) error {
	return []func(t *testing.T, p *remote.Peer) error{
		func(t *testing.T, p *remote.Peer) error { return askForBase(t, p, base, want) },
		func(t *testing.T, p *remote.Peer) error {
			return addOne(t, p, func(channel *remote.Channel, done func(error)) error {
				patch := remote.Patch{Base: base.Info.Path, Encode: encoderOf(base, want.Info), Whole: again(want.NAR)}
				return channel.AddPatch(t.Context(), want.Info, patch, again(want.NAR), done)
			})
		},
	}
}

func pushAgainstSignature(base, want nixtest.Object) []func(t *testing.T, p *remote.Peer) error {
	var signature *delta.Signature
	return []func(t *testing.T, p *remote.Peer) error{
		func(t *testing.T, p *remote.Peer) error { return askForBase(t, p, base, want) },
		func(t *testing.T, p *remote.Peer) error {
			channel, err := p.OpenChannel()
			if err != nil {
				return err
			}
			if err := channel.Signature(base.Info.Path, want.Info); err != nil {
				return err
			}
			arrival, err := channel.Next(t.Context())
			if err != nil {
				return err
			}
			signature, err = delta.ReadSignature(bufio.NewReader(arrival.Reader()))
			return errors.Join(err, arrival.Close())
		},
		func(t *testing.T, p *remote.Peer) error {
			return addOne(t, p, func(channel *remote.Channel, done func(error)) error {
				encode := func(w io.Writer, nar io.Reader) error {
					_, err := delta.EncodeAgainst(w, signature, nar, delta.Options{})
					return err
				}
				patch := remote.Patch{Base: base.Info.Path, Encode: encode, Whole: again(want.NAR)}
				return channel.AddPatch(t.Context(), want.Info, patch, again(want.NAR), done)
			})
		},
	}
}

func pullAll(t *testing.T, p *remote.Peer, objects nixtest.Closure) error {
	channel, err := p.OpenChannel()
	if err != nil {
		return err
	}
	for _, o := range objects {
		if err := channel.Request(t.Context(), o.Info, 0); err != nil {
			return err
		}
	}
	for _, o := range objects {
		arrival, err := channel.Next(t.Context())
		if err != nil {
			return err
		}
		var got bytes.Buffer
		if _, err := arrival.WriteTo(&got); err != nil || !bytes.Equal(got.Bytes(), o.NAR) {
			return fmt.Errorf("%s: its NAR differs, error %w", o.Info.Path, err)
		}
		if err := arrival.Close(); err != nil {
			return err
		}
	}
	return nil
}

// tell has a client of today do what the story says, the last step being to leave.
func (s peerStory) tell(t *testing.T, h remote.Host, o remote.PeerOptions, between func()) {
	t.Helper()
	store, err := remote.Open(t.Context(), h, remote.FarEnd{Access: remote.Write}, remote.Options{StoreDir: nixtest.Dir})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if err := store.Greet(t.Context()); err != nil {
		t.Fatal(err)
	}
	p, err := store.OpenPeer(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range s.steps {
		between()
		if err := step(t, p); err != nil {
			t.Errorf("step %d: %v", i+1, err)
		}
	}
	between()
	p.Close()
}

// TestPeerTranscripts replays sessions between a client and a server of each released
// version: what that client said to today's server, and what that server said to today's
// client.
func TestPeerTranscripts(t *testing.T) {
	for _, version := range peerTranscripts {
		for _, story := range peerStories() {
			file := filepath.Join("testdata", version, story.name+".hex")
			t.Run(version+"/"+story.name, func(t *testing.T) {
				if *updatePeer && version == peerTranscripts[len(peerTranscripts)-1] {
					writeTurns(t, file, story.record(t))
				}
				turns := readTurns(t, file)
				t.Run("server", func(t *testing.T) { story.replayClient(t, turns) })
				t.Run("client", func(t *testing.T) { story.replayServer(t, turns) })
			})
		}
	}
}

// host returns today's server, and the store behind it.
func (s peerStory) host(t *testing.T) (*peerHost, *nixtest.Store) {
	store := nixtest.NewStore(s.have...)
	h := newPeerHost(t, store)
	h.peer.Packing = s.packing
	if s.server != nil {
		s.server(h)
	}
	return h, store
}

// A turn is what both sides say in one step.
type turn struct{ client, server []byte }

// record plays the story between a client and a server of today.
func (s peerStory) record(t *testing.T) []turn {
	h, _ := s.host(t)
	tape := &tape{turns: make([]turn, 1)}
	h.spoil = func(stream io.ReadWriteCloser) io.ReadWriteCloser { return taped{stream, tape} }
	s.tell(t, h, h.peer, tape.next)
	if err := <-h.ended; err != nil {
		t.Fatal(err)
	}
	return tape.turns
}

type tape struct {
	mu    sync.Mutex
	turns []turn
}

func (t *tape) next() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turns = append(t.turns, turn{})
}

// taped is the server's end of a stream.
type taped struct {
	io.ReadWriteCloser
	tape *tape
}

func (t taped) Read(p []byte) (int, error) {
	n, err := t.ReadWriteCloser.Read(p)
	t.tape.mu.Lock()
	defer t.tape.mu.Unlock()
	now := &t.tape.turns[len(t.tape.turns)-1]
	now.client = append(now.client, p[:n]...)
	return n, err
}

func (t taped) Write(p []byte) (int, error) {
	t.tape.mu.Lock()
	now := &t.tape.turns[len(t.tape.turns)-1]
	now.server = append(now.server, p...)
	t.tape.mu.Unlock()
	return t.ReadWriteCloser.Write(p)
}

// replayClient says to today's server what a client said, turn by turn.
func (s peerStory) replayClient(t *testing.T, turns []turn) {
	h, store := s.host(t)
	near, err := h.Start(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	answers := follow(near, skipServerGreeting)
	var recorded []byte
	for i, turn := range turns {
		if _, err := near.Write(turn.client); err != nil {
			t.Fatal(err)
		}
		recorded = append(recorded, turn.server...)
		if i < len(turns)-1 {
			answers.await(t, follow(bytes.NewReader(recorded), skipServerGreeting).whole())
		}
	}
	if err := <-h.ended; err != nil {
		t.Errorf("the server ends with %v", err)
	}
	want := follow(bytes.NewReader(recorded), skipServerGreeting)
	want.whole()
	answers.whole()
	slices.Sort(want.messages)
	slices.Sort(answers.messages)
	if d := cmp.Diff(want.messages, answers.messages); d != "" {
		t.Errorf("the server's messages (-recorded +now):\n%s", d)
	}
	if !bytes.Equal(want.data, answers.data) {
		t.Errorf("the server sends %d bytes of data, other than the %d recorded", len(answers.data), len(want.data))
	}
	if err := store.Verify(); err != nil || len(store.All()) != len(s.have)+len(s.gets) {
		t.Errorf("%d paths are valid, want %d and %d (%v)", len(store.All()), len(s.have), len(s.gets), err)
	}
}

// replayServer answers today's client as a server did, each time when the client has said
// what it said then.
func (s peerStory) replayServer(t *testing.T, turns []turn) {
	near, far := nixtest.Pipe()
	said := follow(far, skipClientGreeting)
	var answering sync.WaitGroup
	defer answering.Wait()
	defer far.Close()
	answering.Go(func() {
		var recorded []byte
		for _, turn := range turns {
			recorded = append(recorded, turn.client...)
			said.await(t, follow(bytes.NewReader(recorded), skipClientGreeting).whole())
			far.Write(turn.server)
		}
	})
	s.tell(t, hostOf{near}, remote.PeerOptions{Packing: s.packing}, func() {})
}

type hostOf struct{ stream io.ReadWriteCloser }

func (h hostOf) Start(context.Context, string) (io.ReadWriteCloser, error) { return h.stream, nil }

// A following has what one side says in the peer protocol.
type following struct {
	mu       sync.Mutex
	changed  *sync.Cond
	messages []string // their kinds and payloads, but for data
	data     []byte   // of all channels, one after another
	ended    bool
}

// follow reads a side behind its greeting.
func follow(r io.Reader, skip func(*bufio.Reader) error) *following {
	f := new(following)
	f.changed = sync.NewCond(&f.mu)
	go func() {
		frames := bufio.NewReader(r)
		if skip(frames) == nil {
			remote.FollowPeer(frames, f.said)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.ended = true
		f.changed.Broadcast()
	}()
	return f
}

func (f *following) said(kind byte, payload []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if kind == remote.PeerData {
		f.data = append(f.data, payload...)
	} else {
		f.messages = append(f.messages, fmt.Sprintf("%d %x", kind, payload))
	}
	f.changed.Broadcast()
}

// whole waits for the end, and returns the number of messages.
func (f *following) whole() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	for !f.ended {
		f.changed.Wait()
	}
	return len(f.messages)
}

// await waits for n messages.
func (f *following) await(t *testing.T, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.messages) < n && !f.ended {
		f.changed.Wait()
	}
	if len(f.messages) < n {
		t.Errorf("it ends after %d messages, want %d", len(f.messages), n)
	}
}

// skipClientGreeting skips the serve protocol's greeting and the start of ours.
func skipClientGreeting(r *bufio.Reader) error {
	_, err := r.Discard(2*8 + 4*8)
	return err
}

// skipServerGreeting skips the offer and the serve protocol's greeting.
func skipServerGreeting(r *bufio.Reader) error {
	if _, err := r.ReadString('\n'); err != nil {
		return err
	}
	_, err := r.Discard(2 * 8)
	return err
}

// readTurns reads lines as readTranscript does; a turn begins with the client's.
func readTurns(t *testing.T, file string) []turn {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	turns := make([]turn, 1)
	for line := range strings.Lines(string(text)) {
		side, digits, _ := strings.Cut(strings.TrimSpace(line), " ")
		b, err := hex.DecodeString(digits)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		now := &turns[len(turns)-1]
		switch {
		case side == "<":
			now.server = append(now.server, b...)
		case len(now.server) == 0:
			now.client = append(now.client, b...)
		default:
			turns = append(turns, turn{client: b})
		}
	}
	return turns
}

func writeTurns(t *testing.T, file string, turns []turn) {
	t.Helper()
	var text strings.Builder
	for _, turn := range turns {
		for line := range slices.Chunk(turn.client, 64) {
			fmt.Fprintf(&text, "> %x\n", line)
		}
		for line := range slices.Chunk(turn.server, 64) {
			fmt.Fprintf(&text, "< %x\n", line)
		}
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text.String()), 0o644)); err != nil {
		t.Fatal(err)
	}
}

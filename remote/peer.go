package remote

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// cmdPeer, in place of a request of the serve protocol, says that from here on the
// peer protocol is spoken.
const cmdPeer = 0x72656570 // "peer"

const (
	peerVersion = 1

	// PeerVariable in our server's environment says what the client wants of it. So
	// does the assignment in a command that a forced command came in place of.
	PeerVariable = "COPY_CLOSURE_PEER"
	PeerAsks     = "1"    // an offer
	PeerJoins    = "join" // a further lane

	// PlanVariable, set to 1, says that a reader plans a push, and may ask what the caches
	// of our server have. Behind a forced command it has no effect.
	PlanVariable = "COPY_CLOSURE_PLAN"
)

// joinMagic is what both ends of a further lane begin with; the client's token follows.
const joinMagic = 0x016e696f6a6363 // "ccjoin\x01\x00"

// goodbye is how long Close tries to take leave.
const goodbye = time.Second

// tokenSize is the length of the secret by which a further lane finds its bundle.
const tokenSize = 16

// A window is how far the sender may be ahead of the reader at the other side.
const (
	nearWindow = 4 << 20
	farWindow  = 32 << 20
	maxWindow  = 64 << 20
)

// A Peer is copy-closure at the far end, spoken to in its own protocol. Paths go
// through channels, of which several may be at work at once. Its methods may be
// called concurrently.
type Peer struct {
	dir    nix.StoreDir
	log    *slog.Logger
	store  *Store
	bundle *bundle
	out    messageWriter

	mu       sync.Mutex
	channels []*Channel
	inboxes  *inboxes            // of the channels
	adds     map[uint64]*peerAdd // sent and not decided
	decided  *sync.Cond          // when there are none left
	numbers  uint64
	lost     error // what the first session ended with
	ended    bool  // no more adds are taken
	blamed   bool  // a path was told why
	bases    question[Base]
	kept     question[partial]
	common   question[bool]
	gone     chan struct{} // closed when the bundle has ended

	resending    sync.WaitGroup // of paths whose deltas did not do
	spare        sync.Mutex
	spareChannel *Channel // for paths that are sent again; nil before the first
}

// A peerAdd is a path that waits for its verdict.
type peerAdd struct {
	path  nix.StorePath
	done  func(error)
	again func(number uint64) // sends it as a whole, once; nil where that was done
}

// OffersPeer reports whether OpenPeer can be called. It is known after the first
// answer.
func (s *Store) OffersPeer() bool {
	select {
	case <-s.first.greeted:
		return s.first.prelude.offer.version > 0
	default:
		return false
	}
}

// Trust tells what the far end has said of it: NotTrusted, or nothing.
func (s *Store) Trust(ctx context.Context) (Trust, error) {
	if err := s.Greet(ctx); err != nil {
		return TrustUnknown, err
	}
	if s.first.prelude.offer.refuses {
		return NotTrusted, nil
	}
	return TrustUnknown, nil
}

// PeerOptions are about the link.
type PeerOptions struct {
	Far     bool // more is kept under way, at the price of memory
	Packing Packing
	Limit   *rate.Limiter // of bytes on the link in a second; nil: none
}

// Window is how many bytes may be under way in each direction.
func (p *Peer) Window() int { return int(p.bundle.window) }

// InOrder reports whether a path can be added only behind its references.
func (p *Peer) InOrder() bool { return p.store.first.prelude.offer.inOrder }

// OpenPeer turns the first session into one of the peer protocol, without waiting. It
// is the last request of the session: those before must be answered, and the Store
// serves for nothing any more but to be closed behind the Peer.
func (s *Store) OpenPeer(ctx context.Context, o PeerOptions) (*Peer, error) {
	window := nearWindow
	if o.Far {
		window = farWindow
	}
	if o.Limit != nil {
		window = max(maxFrame, min(window, int(o.Limit.Limit())))
	}
	p := &Peer{dir: s.dir, log: s.log, store: s, bundle: newBundle(window), adds: make(map[uint64]*peerAdd), gone: make(chan struct{}), inboxes: newInboxes()}
	p.out.bundle, p.out.packer, p.out.limit = p.bundle, newPacker(o.Packing), o.Limit
	p.decided = sync.NewCond(&p.mu)
	c := s.first
	k := &call{
		what: "copy",
		read: func(r *wire.Reader) error { return p.carry(r.Raw(), c.stream) },
		done: p.firstEnded,
	}
	err := c.send(k, true, func(w *wire.Writer) error {
		w.Uint64(cmdPeer)
		w.Uint64(peerVersion)
		w.Uint64(uint64(window))
		w.Uint64(uint64(o.Packing))
		return nil
	})
	c.queue.close()
	if err != nil {
		return nil, err
	}
	go p.receive()
	return p, nil
}

// carry runs a lane.
func (p *Peer) carry(r io.Reader, stream io.ReadWriteCloser) error {
	return p.bundle.run(r, stream, func() { abortStream(stream) })
}

// AddLane opens a further session to carry the protocol. An error leaves those that
// are there at work.
func (p *Peer) AddLane(ctx context.Context) error {
	token := p.store.first.prelude.offer.token
	if token == nil {
		return errors.New("the far end takes one session only")
	}
	stream, err := p.store.openLane(ctx)
	if err != nil {
		return err
	}
	hello := append(binary.LittleEndian.AppendUint64(nil, joinMagic), token...)
	if _, err := stream.Write(hello); err != nil {
		return errors.Join(err, stream.Close())
	}
	p.store.mu.Lock()
	defer p.store.mu.Unlock()
	if p.store.closed {
		abortStream(stream)
		return errClosed
	}
	p.store.joined.Go(func() { p.runLane(stream) })
	return nil
}

// runLane carries the bundle over a further session, until that ends.
func (p *Peer) runLane(stream io.ReadWriteCloser) {
	r := wire.NewReader(stream)
	_, err := findMagic(r, joinMagic)
	if err == nil {
		p.log.Debug("a further session has joined")
		err = p.carry(r.Raw(), stream)
	}
	if closeErr := stream.Close(); closeErr != nil {
		err = farError(closeErr)
	}
	p.laneEnded(err)
}

func abortStream(stream io.Closer) {
	if s, ok := stream.(aborter); ok {
		s.Abort()
		return
	}
	stream.Close()
}

// firstEnded learns how the first session ended, with what the far end said.
func (p *Peer) firstEnded(err error) {
	p.mu.Lock()
	p.lost = err
	p.mu.Unlock()
	p.laneEnded(err)
}

// laneEnded goes on with other lanes where there are any.
func (p *Peer) laneEnded(err error) {
	if p.bundle.failure() != nil {
		return
	}
	if !p.bundle.alone() {
		p.log.Debug("a session has ended, going on without it", "reason", err)
		return
	}
	p.mu.Lock()
	if p.lost != nil {
		err = p.lost
	}
	p.mu.Unlock()
	if err == nil {
		err = errClosed
	}
	p.bundle.fail(err)
}

// receive takes the far end's messages until the bundle ends.
func (p *Peer) receive() {
	in := newMessageReader(p.out.limited(p.bundle))
	defer in.close()
	for {
		m, err := in.next()
		if err == nil {
			err = p.take(m)
		}
		if err != nil {
			p.fail(err)
			return
		}
	}
}

// fail ends everything that waits. The first cause counts, but for what the far end
// itself says, which may be read only after its sessions were seen to end.
func (p *Peer) fail(err error) {
	var format *wire.FormatError
	_, said := err.(*FarError)
	switch {
	case errors.Is(err, io.EOF):
		err = &FarError{Text: "the far end closed the connection before it answered"}
	case errors.As(err, &format):
		err = fmt.Errorf("the far end broke the protocol: %w", err)
	}
	p.bundle.fail(err)
	if !said {
		err = p.bundle.failure()
	}
	p.mu.Lock()
	if !p.ended {
		close(p.gone)
	}
	p.ended = true
	adds := p.adds
	p.adds = nil
	channels := p.channels
	p.decided.Broadcast()
	p.mu.Unlock()
	for _, c := range channels {
		c.in.close(err)
	}
	for _, number := range slices.Sorted(maps.Keys(adds)) {
		adds[number].done(p.blame(adds[number].path, err))
	}
}

// blame returns what an end of everything means for a path: its cause for the first that
// asks, and the consequence of that for all others.
func (p *Peer) blame(path nix.StorePath, err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blamed || err == errClosed {
		return &abandonedError{err}
	}
	p.blamed = true
	return fmt.Errorf("send %s: %w", path, err)
}

func (p *Peer) take(m message) error {
	switch m.kind {
	case msgDone, msgFail:
		return p.takeVerdict(m)
	case msgData, msgEnd, msgAbort:
		return p.takeNAR(m)
	case msgBases:
		return p.takeBases(m)
	case msgWhole:
		return p.takeWhole(m)
	case msgSizes:
		return p.takeSizes(m)
	case msgThere:
		return p.takeThere(m)
	case msgError:
		text := m.payload.text(maxPeerText)
		if err := m.payload.end(); err != nil {
			return err
		}
		return &FarError{Text: clipForeign(text)}
	}
	return &wire.FormatError{Msg: fmt.Sprintf("it sends a message of kind %d", m.kind)}
}

func (p *Peer) takeVerdict(m message) error {
	number := m.payload.uvarint(1<<63 - 1)
	var refused string
	if m.kind == msgFail {
		refused = m.payload.text(maxPeerText)
	}
	if err := m.payload.end(); err != nil {
		return err
	}
	p.mu.Lock()
	add := p.adds[number]
	delete(p.adds, number)
	p.mu.Unlock()
	defer p.tellIfDecided()
	switch {
	case add == nil:
		return &wire.FormatError{Msg: "it decides on a path that was not sent"}
	case m.kind == msgFail:
		add.done(fmt.Errorf("send %s: %w", add.path, &FarError{Text: clipForeign(refused)}))
	default:
		add.done(nil)
	}
	return nil
}

// tellIfDecided comes behind done, so that Finish does, too.
func (p *Peer) tellIfDecided() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.adds) == 0 {
		p.decided.Broadcast()
	}
}

func (p *Peer) takeNAR(m message) error {
	i := item{kind: m.kind, buf: m.buf}
	number := m.payload.channelNumber()
	switch m.kind {
	case msgData:
		i.data, m.payload.b = m.payload.b, nil
	case msgAbort:
		i.text = m.payload.text(maxPeerText)
	}
	if err := m.payload.end(); err != nil {
		return err
	}
	p.mu.Lock()
	var c *Channel
	if number < uint64(len(p.channels)) {
		c = p.channels[number]
	}
	p.mu.Unlock()
	if c == nil {
		return errUnasked
	}
	if err := c.expect(i); err != nil {
		return err
	}
	return c.in.put(i)
}

// LinkRate is how many bytes of NARs a second the link takes from here, as far as was
// seen; 0 if that is not known.
func (p *Peer) LinkRate() float64 { return p.out.linkRate() }

// Finish asks for the verdict on all that was added, and returns when there is one on
// each. A path whose references were not added before is refused.
func (p *Peer) Finish(ctx context.Context) error {
	if err := p.out.sendNow(msgFlush, nil); err != nil {
		return &abandonedError{err}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.adds) > 0 {
		p.decided.Wait()
	}
	return nil
}

// Close says good-bye and ends all sessions of the protocol.
func (p *Peer) Close() error {
	stuck := time.AfterFunc(goodbye, p.Abort)
	defer stuck.Stop()
	p.bundle.End()
	p.fail(errClosed)
	p.resending.Wait()
	return nil
}

// Abort ends the protocol at once; whoever waits for it gets an error.
func (p *Peer) Abort() { p.fail(errClosed) }

// expect registers a path that is about to be sent. Where none is any more, add is
// done at once.
func (p *Peer) expect(add *peerAdd) (uint64, error) {
	p.mu.Lock()
	if !p.ended {
		defer p.mu.Unlock()
		p.numbers++
		p.adds[p.numbers] = add
		return p.numbers, nil
	}
	p.mu.Unlock()
	err := p.bundle.failure()
	add.done(p.blame(add.path, err))
	return 0, &abandonedError{err}
}

// forget says that the path with that number is not sent after all. What the far end
// says of it does not matter.
func (p *Peer) forget(number uint64) (done func(error)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	add := p.adds[number]
	if add == nil {
		return func(error) {}
	}
	p.adds[number] = &peerAdd{path: add.path, done: func(error) {}, again: func(uint64) {}}
	return add.done
}

// A Channel carries NARs one after another. One goroutine may add, or one request
// while another takes.
type Channel struct {
	p      *Peer
	number uint64
	out    *channelWriter
	in     *inbox

	mu     sync.Mutex
	wanted []int64 // what was requested and has not ended: how many bytes may still come
}

// OpenChannel returns a further channel. Channels end with their Peer.
func (p *Peer) OpenChannel() (*Channel, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.channels) == maxChannels {
		return nil, fmt.Errorf("there are %d channels already", maxChannels)
	}
	number := uint64(len(p.channels))
	c := &Channel{p: p, number: number, out: newChannelWriter(&p.out, number), in: p.inboxes.open()}
	if p.ended {
		c.in.close(p.bundle.failure())
	}
	p.channels = append(p.channels, c)
	return c, nil
}

// Add sends one path and returns when its NAR, which nar writes, is handed on; done
// is called once, with nil when the far end has registered the path.
func (c *Channel) Add(ctx context.Context, info *nix.PathInfo, nar io.WriterTo, done func(error)) error {
	number, err := c.p.expect(&peerAdd{path: info.Path, done: done})
	if err != nil {
		return err
	}
	return c.send(number, info, 0, nar)
}

// send sends a path that is expected under a number, its NAR from offset on.
func (c *Channel) send(number uint64, info *nix.PathInfo, offset int64, nar io.WriterTo) error {
	fields := appendPathInfo(binary.AppendUvarint(slices.Clone(c.out.channel), number), info)
	if err := c.p.out.send(msgAdd, binary.AppendUvarint(fields, uint64(offset)), nil); err != nil {
		return &abandonedError{err}
	}
	c.out.begin(info.NARSize - offset)
	_, err := nar.WriteTo(&tailWriter{c.out, offset})
	if err == nil && c.out.left > 0 {
		err = &nix.SizeMismatchError{Got: info.NARSize - c.out.left, Want: info.NARSize}
	}
	if c.out.err == nil && err != nil {
		c.out.abort("the sender could not read it")
		c.p.forget(number)(err)
		return err
	}
	if err := c.out.end(); err != nil {
		return &abandonedError{err}
	}
	return nil
}

// Lookahead is how many bytes of NARs to request ahead.
func (c *Channel) Lookahead() int64 { return int64(c.p.bundle.window) }

// Abort ends the protocol, as a channel cannot be ended alone.
func (c *Channel) Abort() { c.p.Abort() }

// Request asks for a NAR, from offset on, ahead of time and does not wait for it.
func (c *Channel) Request(ctx context.Context, info *nix.PathInfo, offset int64) error {
	c.want(info.NARSize - offset)
	fields := appendPath(slices.Clone(c.out.channel), info.Path)
	fields = append(fields, info.NARHash.Bytes()...)
	fields = binary.AppendUvarint(fields, uint64(info.NARSize))
	return c.p.out.sendNow(msgWant, binary.AppendUvarint(fields, uint64(offset)))
}

// want says that at most size bytes are about to be requested.
func (c *Channel) want(size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wanted = append(c.wanted, size)
}

var errUnasked = &wire.FormatError{Msg: "it sends a NAR that was not asked for"}

// expect checks that what comes was requested.
func (c *Channel) expect(i item) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.wanted) == 0 {
		return errUnasked
	}
	if i.kind != msgData {
		c.wanted = c.wanted[1:]
		return nil
	}
	if c.wanted[0] -= int64(len(i.data)); c.wanted[0] < 0 {
		return &wire.FormatError{Msg: "it sends more than was asked for"}
	}
	return nil
}

// Next returns the NAR that was requested first and not yet taken. It must be closed
// before the following one is taken.
func (c *Channel) Next(ctx context.Context) (*Arrival, error) {
	c.in.begin()
	return &Arrival{in: c.in}, nil
}

// An Arrival is a NAR on its way from the far end. The reader must check that it is
// one, and the right one.
type Arrival struct{ in *inbox }

// Reader returns the NAR as a stream. An error says how the far end failed.
func (a *Arrival) Reader() io.Reader { return a.in }

// WriteTo writes the rest of the NAR to w.
func (a *Arrival) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{a.in})
}

// Close skips what was not read.
func (a *Arrival) Close() error {
	_, err := a.in.skip()
	return err
}

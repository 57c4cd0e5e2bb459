package remote

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/copy-closure/copy-closure/internal/delta"
	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

func (s *server) offer() offer {
	o := offer{version: peerVersion, inOrder: s.options.InOrder, refuses: s.options.Untrusted, atomic: s.options.Atomic, foresees: s.foresees()}
	if s.options.Meeting != nil {
		o.token = s.options.Meeting.Token()
	}
	if s.options.Room != nil {
		o.room = s.options.Room()
	}
	return o
}

// servePeer goes on in the peer protocol until the client takes leave.
func (s *server) servePeer(ctx context.Context) error {
	if err := s.settle(); err != nil {
		return err
	}
	version, window, packing := s.in.Uint64(), s.in.Uint64(), s.in.Uint64()
	if err := s.in.Err(); err != nil {
		return fmt.Errorf("read the client's greeting: %w", err)
	}
	if version != peerVersion || window < maxFrame || window > maxWindow || packing >= uint64(packings) {
		return &wire.FormatError{Msg: fmt.Sprintf("the client wants version %d of the peer protocol, a window of %d bytes and packing %d", version, window, packing)}
	}
	if err := s.out.Flush(); err != nil {
		return err
	}
	if s.options.Window != nil {
		s.options.Window(int(window))
	}
	p := &peerServer{server: s, bundle: newBundle(int(window)), flushes: make(chan []chan struct{}, 1), over: make(chan struct{}), memory: delta.NewBudget(), inboxes: newInboxes()}
	p.bases.init()
	p.out.bundle, p.out.packer = p.bundle, newPacker(Packing(packing))
	return p.serve(ctx)
}

// A peerServer is the far end of a Peer.
type peerServer struct {
	*server
	bundle   *bundle
	out      messageWriter
	importer Importer            // nil before the first path
	inboxes  *inboxes            // of taking and giving
	taking   [maxChannels]*inbox // paths on their way in
	giving   [maxChannels]*inbox // paths that are asked for
	signing  [maxChannels]bool   // a signature is on its way in, to giving
	workers  sync.WaitGroup      // one for each inbox
	flushing sync.WaitGroup
	flushes  chan []chan struct{} // each is closed when a channel has come to the Flush
	over     chan struct{}        // closed when no channel does any more
	bases    serverBases
	memory   delta.Budget
	pace     delta.Pace
}

// serve returns nil when the client has taken leave.
func (p *peerServer) serve(ctx context.Context) error {
	var lanes sync.WaitGroup
	lanes.Go(func() { p.carry(p.in.Raw(), p.stream) })
	if m := p.options.Meeting; m != nil {
		lanes.Go(func() { p.meet(m, &lanes) })
	}
	err := p.receive(ctx)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if err != nil {
		p.fail(err)
	}
	err = errors.Join(err, p.finish(err))
	p.bundle.fail(errClosed)
	if m := p.options.Meeting; m != nil {
		m.Close()
	}
	lanes.Wait()
	return err
}

// carry runs a lane, with the last of which the bundle ends.
func (p *peerServer) carry(r io.Reader, stream io.ReadWriteCloser) {
	err := p.bundle.run(r, stream, func() { stream.Close() })
	stream.Close()
	if p.bundle.alone() {
		p.bundle.fail(err)
	}
}

// meet takes in further lanes.
func (p *peerServer) meet(m Meeting, lanes *sync.WaitGroup) {
	for n := 1; ; n++ {
		stream, err := m.Accept()
		if err != nil {
			return
		}
		if n >= maxLanes {
			stream.Close()
			continue
		}
		lanes.Go(func() {
			hello := binary.LittleEndian.AppendUint64(nil, joinMagic)
			if _, err := stream.Write(hello); err != nil {
				stream.Close()
				return
			}
			p.carry(stream, stream)
		})
	}
}

// finish waits for what is under way, and makes valid what is complete.
func (p *peerServer) finish(err error) error {
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	for _, in := range slices.Concat(p.taking[:], p.giving[:]) {
		if in != nil {
			in.close(err)
		}
	}
	p.workers.Wait()
	close(p.over)
	p.bases.paid.Broadcast()
	close(p.flushes)
	p.flushing.Wait()
	if p.importer == nil {
		return nil
	}
	return p.importer.Close()
}

// receive takes messages until the stream ends.
func (p *peerServer) receive(ctx context.Context) error {
	in := newMessageReader(p.bundle)
	defer in.close()
	for {
		m, err := in.next()
		if err == nil {
			err = p.take(ctx, m)
		}
		if err != nil {
			return err
		}
	}
}

func (p *peerServer) take(ctx context.Context, m message) error {
	switch m.kind {
	case msgAdd, msgPatch:
		return p.takeAdd(ctx, m)
	case msgData, msgEnd, msgAbort:
		return p.takeNAR(m)
	case msgWant:
		return p.takeWant(ctx, m)
	case msgAsk:
		return p.takeAsk(ctx, m)
	case msgSign:
		return p.takeSign(ctx, m)
	case msgKept:
		return p.takeKept(ctx, m)
	case msgAtomic:
		return p.takeAtomic(ctx, m)
	case msgCommon:
		return p.takeCommon(ctx, m)
	case msgUpdate, msgSigned:
		return p.takeUpdate(ctx, m)
	case msgFlush:
		return errors.Join(p.takeFlush(), m.payload.end())
	}
	return &wire.FormatError{Msg: fmt.Sprintf("unknown message of kind %d", m.kind)}
}

func (p *peerServer) takeAdd(ctx context.Context, m message) error {
	channel := m.payload.channelNumber()
	i := item{kind: m.kind, number: m.payload.uvarint(1<<63 - 1)}
	if m.kind == msgPatch {
		i.base = m.payload.path(p.dir)
	}
	i.info = m.payload.pathInfo(p.dir)
	if m.kind == msgAdd {
		i.offset = m.payload.offset(i.info.NARSize)
	}
	if err := m.payload.end(); err != nil {
		return err
	}
	if p.signing[channel] {
		return errUnended
	}
	if err := p.mayWrite("add paths"); err != nil {
		return err
	}
	if err := p.openImporter(ctx); err != nil {
		return fmt.Errorf("add %s: %w", i.info.Path, err)
	}
	in := p.taking[channel]
	if in == nil {
		if p.options.InOrder && slices.ContainsFunc(p.taking[:], func(in *inbox) bool { return in != nil }) {
			return &wire.FormatError{Msg: "paths come in several channels, where they must come in order"}
		}
		in = p.inboxes.open()
		p.taking[channel] = in
		p.workers.Go(func() { p.addAll(ctx, in) })
	}
	return in.put(i)
}

func (p *peerServer) openImporter(ctx context.Context) (err error) {
	if p.importer != nil {
		return nil
	}
	if p.importer, err = p.backend.Import(ctx); err != nil {
		return err
	}
	if keeping, ok := p.importer.(KeepingImporter); ok {
		keeping.KeepPartials(p.options.Vouched)
	}
	p.flushing.Go(func() { p.flushOnDemand(ctx) })
	return nil
}

func (p *peerServer) takeNAR(m message) error {
	channel := m.payload.channelNumber()
	i := item{kind: m.kind, buf: m.buf}
	switch m.kind {
	case msgData:
		i.data, m.payload.b = m.payload.b, nil
	case msgAbort:
		i.text = m.payload.text(maxPeerText)
	}
	if err := m.payload.end(); err != nil {
		return err
	}
	in := p.taking[channel]
	if p.signing[channel] {
		in, p.signing[channel] = p.giving[channel], i.kind == msgData
	}
	if in == nil {
		return &wire.FormatError{Msg: "a NAR comes before its path"}
	}
	return in.put(i)
}

// addAll adds the paths of a channel, one after another.
func (p *peerServer) addAll(ctx context.Context, in *inbox) {
	for {
		i, err := in.next()
		if err != nil {
			return
		}
		switch {
		case i.kind == msgFlush:
			close(i.passed)
		case i.info == nil:
			err = &wire.FormatError{Msg: "a NAR goes on behind its end"}
		default:
			in.begin()
			err = p.addItem(ctx, in, i)
			in.passLater()
		}
		if err != nil {
			p.fail(err)
			in.close(err) // what still comes need not wait to be taken
			return
		}
	}
}

func (p *peerServer) addItem(ctx context.Context, in *inbox, i item) error {
	switch {
	case i.kind == msgPatch:
		return p.addPatch(ctx, in, i)
	case i.offset > 0:
		return p.addRest(ctx, in, i)
	}
	err := p.add(ctx, in, i)
	p.pay(i.number)
	return err
}

// fail tells the client why the session ends, and ends it.
func (p *peerServer) fail(err error) {
	if p.bundle.failure() == nil {
		p.out.sendNow(msgError, appendText(nil, clipText(err.Error())))
		p.bundle.End()
	}
	p.bundle.fail(err)
}

// add hands one path to the importer. The error is one that ends the session.
func (p *peerServer) add(ctx context.Context, in *inbox, i item) error {
	var once sync.Once
	decide := func(err error) { once.Do(func() { p.decide(i.number, err) }) }
	if p.options.Check != nil {
		if err := p.options.Check(i.info); err != nil {
			decide(err)
			_, err := in.skip()
			return err
		}
	}
	if err := p.importer.Add(ctx, i.info, in, decide); err != nil {
		decide(err)
		_, err := in.skip()
		return err
	}
	left, err := in.skip()
	if left > 0 {
		return fmt.Errorf("add %s: %w", i.info.Path, &wire.FormatError{Msg: "its NAR is longer than was announced"})
	}
	return err
}

// decide tells the client what became of a path.
func (p *peerServer) decide(number uint64, err error) {
	fields := binary.AppendUvarint(nil, number)
	if err == nil {
		p.out.sendNow(msgDone, fields)
		return
	}
	p.out.sendNow(msgFail, appendText(fields, clipText(err.Error())))
}

// takeFlush asks that what was added become valid, when all channels have added it.
func (p *peerServer) takeFlush() error {
	if p.importer == nil {
		return nil
	}
	var marks []chan struct{}
	for _, in := range p.taking {
		if in != nil {
			mark := make(chan struct{})
			marks = append(marks, mark)
			if err := in.put(item{kind: msgFlush, passed: mark}); err != nil {
				return err
			}
		}
	}
	p.flushes <- marks
	return nil
}

// flushOnDemand runs until no more is asked for.
func (p *peerServer) flushOnDemand(ctx context.Context) {
	for marks := range p.flushes {
		for _, mark := range marks {
			select {
			case <-mark:
			case <-p.over:
			}
		}
		p.awaitPayment()
		if err := p.importer.Flush(ctx); err != nil {
			p.fail(fmt.Errorf("add paths: %w", err))
		}
	}
}

func (p *peerServer) takeWant(ctx context.Context, m message) error {
	channel := m.payload.channelNumber()
	info := &nix.PathInfo{Path: m.payload.path(p.dir), NARHash: m.payload.hash()}
	info.NARSize = int64(m.payload.uvarint(1<<63 - 1))
	offset := m.payload.offset(info.NARSize)
	if err := m.payload.end(); err != nil {
		return err
	}
	return p.request(ctx, channel, item{kind: m.kind, info: info, offset: offset})
}

// request has an item given in a channel.
func (p *peerServer) request(ctx context.Context, channel uint64, i item) error {
	if p.signing[channel] {
		return errUnended
	}
	return p.giver(ctx, channel).put(i)
}

// giver is where requests for what shall come in a channel wait.
func (p *peerServer) giver(ctx context.Context, channel uint64) *inbox {
	in := p.giving[channel]
	if in == nil {
		in = p.inboxes.open()
		p.giving[channel] = in
		p.workers.Go(func() { p.giveAll(ctx, in, channel) })
	}
	return in
}

// giveAll sends what is asked for in a channel, in that order.
func (p *peerServer) giveAll(ctx context.Context, in *inbox, channel uint64) {
	out := newChannelWriter(&p.out, channel)
	for {
		i, err := in.next()
		if err != nil {
			return
		}
		if err := p.giveItem(ctx, out, in, i); err != nil {
			out.abort(fmt.Sprintf("send %s: %v", i.info.Path, err))
		}
		p.out.flush()
	}
}

func (p *peerServer) giveItem(ctx context.Context, out *channelWriter, in *inbox, i item) error {
	switch i.kind {
	case msgSign:
		return p.sign(ctx, out, i)
	case msgUpdate, msgSigned:
		return p.giveUpdate(ctx, out, in, i)
	}
	out.begin(i.info.NARSize - i.offset)
	return p.give(ctx, out, i)
}

// give sends one NAR. Where it is not what the client expects, the client does not get
// its end.
func (p *peerServer) give(ctx context.Context, out *channelWriter, i item) error {
	info := i.info
	checked := &serverNAR{w: &tailWriter{out, i.offset}, info: info, hash: nar.NewHasher(sha256.New())}
	err := p.backend.WriteNAR(ctx, checked, info.Path)
	sum := nix.SHA256Hash([sha256.Size]byte(checked.hash.Sum()))
	if err == nil {
		err = checked.finish(sum)
	}
	if err == nil {
		err = out.end()
	}
	return err
}

// readToken reads what a further lane begins with, and no byte beyond.
func readToken(r io.Reader) ([]byte, error) {
	hello := make([]byte, 8+tokenSize)
	if _, err := io.ReadFull(r, hello); err != nil {
		return nil, fmt.Errorf("read the token of a further session: %w", err)
	}
	if binary.LittleEndian.Uint64(hello) != joinMagic {
		return nil, &wire.FormatError{Msg: "protocol mismatch: the client does not join a session"}
	}
	return hello[8:], nil
}

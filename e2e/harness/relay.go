package harness

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// A Direction is one of the two ways through a [Relay].
type Direction int

// The client of a relay is who connects to it; the server is its target.
const (
	Up   Direction = iota // from the client to the server
	Down                  // from the server to the client
)

// A Link is how one direction of a relay behaves.
type Link struct {
	// Delay is how long each byte is under way. It holds up nothing but
	// itself: any number of bytes may be under way at once.
	Delay time.Duration
	// Rate is in bytes per second; zero is unlimited.
	Rate float64
}

const (
	relayChunk  = 64 << 10
	relayBuffer = 64 << 20 // bytes under way per connection and direction
	// rateQueue is how far ahead of a limited link the relay reads, in time:
	// more would hide from the sender that the link is slow.
	rateQueue = 5 * time.Millisecond
)

// A Relay forwards TCP connections from a port of its own to a target over a
// link that can be made far, slow, frozen or cut at any time, also while data
// is under way. Its methods may be called concurrently.
type Relay struct {
	target   string
	listener net.Listener
	wait     sync.WaitGroup

	mu     sync.Mutex
	thawed *sync.Cond // broadcast when frozen becomes false or closed true
	frozen bool
	closed bool
	pairs  map[*pair]bool
	count  int // of connections so far
	links  [2]linkState
}

// linkState is what all connections of a relay share in one direction.
type linkState struct {
	Link
	free  time.Time // when the limited link has sent what it was given
	total int64     // bytes delivered
	armed bool      // whether left counts down to a cut
	left  int64
	only  int // the number of the one connection that is counted and cut; 0: all are
}

// A pair is one forwarded connection.
type pair struct {
	number         int // from 1 on
	client, server *net.TCPConn
	once           sync.Once
}

// NewRelay listens on a free port of the loopback and forwards to target, a
// host:port, without delay or limit until told otherwise.
func NewRelay(target string) (*Relay, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Relay{target: target, listener: listener, pairs: make(map[*pair]bool)}
	r.thawed = sync.NewCond(&r.mu)
	r.wait.Go(r.accept)
	return r, nil
}

// Addr returns the host:port that the relay listens on.
func (r *Relay) Addr() string { return r.listener.Addr().String() }

// Set changes one direction. Bytes that are under way already keep their old
// delay, and nothing overtakes them.
func (r *Relay) Set(d Direction, l Link) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.links[d].Link = l
}

// SetRoundTrip divides a round trip evenly between the two directions and
// leaves their rates as they are.
func (r *Relay) SetRoundTrip(rtt time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.links[Up].Delay = rtt / 2
	r.links[Down].Delay = rtt - rtt/2
}

// Bytes returns how many bytes have been delivered in a direction, over all
// connections.
func (r *Relay) Bytes(d Direction) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.links[d].total
}

// CutAfter lets n more bytes through in a direction, over all connections, and
// then resets every connection. Connections made after the cut are not
// affected.
func (r *Relay) CutAfter(d Direction, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.links[d].armed, r.links[d].left, r.links[d].only = true, n, 0
}

// CutOneAfter is CutAfter for one connection and its bytes: the number-th that was made,
// from 1 on.
func (r *Relay) CutOneAfter(d Direction, n int64, number int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.links[d].armed, r.links[d].left, r.links[d].only = true, n, number
}

// Connections returns how many connections have been made.
func (r *Relay) Connections() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count
}

// Kill resets every connection now. New ones are accepted.
func (r *Relay) Kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.killLocked()
}

func (r *Relay) killLocked() {
	for p := range r.pairs {
		p.reset()
	}
}

// Freeze makes the link dead: nothing is delivered any more and nothing is
// closed, as when a cable is pulled.
func (r *Relay) Freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen = true
}

// Thaw ends a Freeze. What was held back is delivered.
func (r *Relay) Thaw() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen = false
	r.thawed.Broadcast()
}

// Close resets every connection, stops listening and waits until all is over.
func (r *Relay) Close() error {
	r.mu.Lock()
	r.closed, r.frozen = true, false
	r.killLocked()
	r.thawed.Broadcast()
	r.mu.Unlock()
	err := r.listener.Close()
	r.wait.Wait()
	return err
}

func (r *Relay) accept() {
	for {
		c, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.wait.Go(func() { r.forward(c.(*net.TCPConn)) })
	}
}

func (r *Relay) forward(client *net.TCPConn) {
	c, err := net.Dial("tcp", r.target)
	if err != nil {
		client.SetLinger(0)
		client.Close()
		return
	}
	p := &pair{client: client, server: c.(*net.TCPConn)}
	if !r.add(p) {
		p.reset()
		return
	}
	var both sync.WaitGroup
	both.Go(func() { r.pump(p, Up, p.server, p.client) })
	both.Go(func() { r.pump(p, Down, p.client, p.server) })
	both.Wait()
	r.remove(p)
}

func (r *Relay) add(p *pair) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.count++
	p.number = r.count
	r.pairs[p] = true
	return true
}

func (r *Relay) remove(p *pair) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pairs, p)
	p.close()
}

// pump carries one direction of one connection until its end. An orderly end
// of the stream is passed on after the bytes before it; anything else resets
// the pair.
func (r *Relay) pump(p *pair, d Direction, dst, src *net.TCPConn) {
	line := newDelayLine(relayBuffer)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.deliver(line, d, p, dst); err != nil {
			p.reset()
			line.abandon()
			return
		}
		dst.CloseWrite()
	}()
	err := r.collect(line, d, src)
	line.end(err)
	<-done
}

// collect reads src into the line, noting when each chunk is due.
func (r *Relay) collect(line *delayLine, d Direction, src io.Reader) error {
	for {
		buf := make([]byte, r.chunkSize(d))
		n, err := src.Read(buf)
		if n > 0 {
			due, ready := r.schedule(d, n)
			if !line.push(buf[:n], due) {
				return errors.New("the other side is gone")
			}
			time.Sleep(time.Until(ready))
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// chunkSize keeps the steps of a limited link at about a millisecond.
func (r *Relay) chunkSize(d Direction) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.links[d].Rate == 0 {
		return relayChunk
	}
	return min(max(int(r.links[d].Rate/1000), 512), relayChunk)
}

// schedule books n bytes on the link. They are due at the far end at due;
// before ready the relay should not read more.
func (r *Relay) schedule(d Direction, n int) (due, ready time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := &r.links[d]
	now := time.Now()
	if l.free.Before(now) {
		l.free = now
	}
	if l.Rate > 0 {
		l.free = l.free.Add(time.Duration(float64(n) / l.Rate * float64(time.Second)))
	}
	return l.free.Add(l.Delay), l.free.Add(-rateQueue)
}

// deliver writes the line's chunks to their receiver, each when it is due.
func (r *Relay) deliver(line *delayLine, d Direction, p *pair, dst io.Writer) error {
	for {
		c, err := line.pop()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		time.Sleep(time.Until(c.due))
		n, cut := r.admit(p, d, len(c.data))
		if _, err := dst.Write(c.data[:n]); err != nil {
			return err
		}
		if cut {
			r.cut(p, d)
			return errors.New("link cut")
		}
	}
}

// admit waits while the link is frozen, then says how many of n bytes may
// pass, and whether the link is cut behind them.
func (r *Relay) admit(p *pair, d Direction, n int) (int, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.frozen {
		r.thawed.Wait()
	}
	l := &r.links[d]
	counts := l.only == 0 || l.only == p.number
	cut := l.armed && counts && l.left <= int64(n)
	if cut {
		n, l.armed = int(l.left), false
	}
	if counts {
		l.left -= int64(n)
	}
	l.total += int64(n)
	return n, cut
}

// cut resets what was to be cut when p had let its last byte through.
func (r *Relay) cut(p *pair, d Direction) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.links[d].only != 0 {
		p.reset()
		return
	}
	r.killLocked()
}

// reset ends both connections at once. Bytes that were written before it have
// left for the receiver, but either side sees an error after them.
func (p *pair) reset() {
	p.once.Do(func() {
		p.client.SetLinger(0)
		p.server.SetLinger(0)
		p.client.Close()
		p.server.Close()
	})
}

func (p *pair) close() {
	p.once.Do(func() {
		p.client.Close()
		p.server.Close()
	})
}

// A chunk is bytes that are under way.
type chunk struct {
	data []byte
	due  time.Time
}

// A delayLine is a first-in first-out queue of chunks, bounded in bytes, for
// one sender and one receiver.
type delayLine struct {
	mu      sync.Mutex
	changed *sync.Cond
	chunks  []chunk
	size    int
	limit   int
	err     error // set by end; io.EOF for an orderly one
	gone    bool  // the receiver takes no more
}

func newDelayLine(limit int) *delayLine {
	l := &delayLine{limit: limit}
	l.changed = sync.NewCond(&l.mu)
	return l
}

// push waits for room. It returns false when the receiver is gone.
func (l *delayLine) push(data []byte, due time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.size >= l.limit && !l.gone {
		l.changed.Wait()
	}
	if l.gone {
		return false
	}
	l.chunks = append(l.chunks, chunk{data, due})
	l.size += len(data)
	l.changed.Broadcast()
	return true
}

// end says that nothing follows; err is nil for an orderly end.
func (l *delayLine) end(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = io.EOF
	if err != nil {
		l.err = err
	}
	l.changed.Broadcast()
}

// pop returns the next chunk, or how the stream ended.
func (l *delayLine) pop() (chunk, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.chunks) == 0 && l.err == nil {
		l.changed.Wait()
	}
	if len(l.chunks) == 0 {
		return chunk{}, l.err
	}
	c := l.chunks[0]
	l.chunks[0] = chunk{}
	l.chunks = l.chunks[1:]
	l.size -= len(c.data)
	l.changed.Broadcast()
	return c, nil
}

// abandon releases a sender that waits for room.
func (l *delayLine) abandon() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone = true
	l.changed.Broadcast()
}

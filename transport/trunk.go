package transport

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// dialsAtOnce is how many further connections are made at the same time: of more than
// ten that are not logged in yet, sshd drops some.
const dialsAtOnce = 4

// A Trunk is one or more connections to one host, as a Conn. It begins with one; what
// Conn tells of itself is about that.
type Trunk struct {
	Conn // the first

	dest    Destination
	options Options

	mu      sync.Mutex
	further []*furtherConn
	turn    int // of StartFurther: 0 is the first connection's
	closed  bool
	cancel  []context.CancelFunc
}

// A furtherConn is being made, or was.
type furtherConn struct {
	ready chan struct{} // closed when conn is set
	conn  Conn          // nil: it could not be made
}

// DialTrunk is Dial for a Trunk.
func DialTrunk(ctx context.Context, d Destination, o Options) (*Trunk, error) {
	o.Logger = orDiscard(o.Logger)
	first, err := Dial(ctx, d, o)
	if err != nil {
		return nil, err
	}
	return &Trunk{Conn: first, dest: d, options: o}, nil
}

// Widen makes further connections in the background, until there are n in all. Nobody is
// asked for anything, or to touch a key, and the user's own master is not used, which is
// one connection however often it is. One that cannot be had is done without. The context
// governs their whole life.
func (t *Trunk) Widen(ctx context.Context, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || n-1 <= len(t.further) {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	t.cancel = append(t.cancel, cancel)
	slots := make(chan struct{}, dialsAtOnce)
	for len(t.further) < n-1 {
		f := &furtherConn{ready: make(chan struct{})}
		t.further = append(t.further, f)
		go func() {
			defer close(f.ready)
			slots <- struct{}{}
			defer func() { <-slots }()
			f.conn = t.dialFurther(ctx)
		}()
	}
}

// dialFurther returns nil where no connection can be had.
func (t *Trunk) dialFurther(ctx context.Context) Conn {
	conn, err := dial(ctx, t.dest, t.options, true)
	if err != nil {
		t.options.Logger.Debug("a further connection cannot be had, going on without it", "reason", err)
		return nil
	}
	t.options.Logger.Debug("a further connection is there", "to", conn.Login().Address)
	return conn
}

// Start implements Conn: on the first connection, or where that is lost on one that is
// left.
func (t *Trunk) Start(ctx context.Context, command string) (*Session, error) {
	s, err := t.Conn.Start(ctx, command)
	for _, f := range t.allFurther() {
		if _, lost := errors.AsType[*LostError](err); !lost || ctx.Err() != nil {
			break
		}
		if conn := f.wait(ctx); conn != nil {
			s, err = conn.Start(ctx, command)
		}
	}
	return s, err
}

// StartFurther is Start on all connections in turn, for sessions that share one work. It
// waits until its connection is made.
func (t *Trunk) StartFurther(ctx context.Context, command string) (*Session, error) {
	t.mu.Lock()
	t.turn = (t.turn + 1) % (len(t.further) + 1)
	var f *furtherConn
	if t.turn > 0 {
		f = t.further[t.turn-1]
	}
	t.mu.Unlock()
	if f != nil {
		if conn := f.wait(ctx); conn != nil {
			s, err := conn.Start(ctx, command)
			if _, lost := errors.AsType[*LostError](err); !lost {
				return s, err
			}
		}
	}
	return t.Start(ctx, command)
}

// wait returns nil where the connection could not be made.
func (f *furtherConn) wait(ctx context.Context) Conn {
	select {
	case <-f.ready:
		return f.conn
	case <-ctx.Done():
		return nil
	}
}

func (t *Trunk) allFurther() []*furtherConn {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.further)
}

// Close implements Conn, for all connections.
func (t *Trunk) Close() error {
	t.mu.Lock()
	t.closed = true
	for _, cancel := range t.cancel {
		cancel()
	}
	t.mu.Unlock()
	var ending sync.WaitGroup
	for _, f := range t.allFurther() {
		ending.Go(func() {
			if <-f.ready; f.conn != nil {
				f.conn.Close()
			}
		})
	}
	err := t.Conn.Close()
	ending.Wait()
	return err
}

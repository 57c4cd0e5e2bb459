package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// Sessions are those of one far store, all of one protocol.
type sessions struct {
	dir     nix.StoreDir
	log     *slog.Logger
	open    opener
	dialect dialect
	lanes   laneDialect
	first   *conn
	asked   string // the program that was asked for by name; empty: the start script chooses
	rounds  atomic.Int64

	mu      sync.Mutex
	all     []*session // the first of them is always there
	inLanes int        // sessions given out as lanes, from the first on
	closed  bool
}

// A session is a conn that is opened when it is first needed.
type session struct {
	once sync.Once
	conn *conn
	err  error
}

// An opener starts the server of one more session, first or further.
type opener func(ctx context.Context, further bool) (io.ReadWriteCloser, error)

// openSessions opens the first session. Whoever calls it sets lanes.
func openSessions(ctx context.Context, open opener, d dialect, o Options) (*sessions, error) {
	s := &sessions{dir: o.StoreDir, log: o.Logger, open: open, dialect: d}
	if s.dir == "" {
		s.dir = nix.DefaultStoreDir
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	stream, err := open(ctx, false)
	if err != nil {
		return nil, err
	}
	s.first = newConn(stream, d, s.dir, s.log)
	s.all = []*session{{conn: s.first}}
	s.all[0].once.Do(func() {})
	return s, nil
}

// session returns the session with that number, and opens it if need be.
func (s *sessions) session(ctx context.Context, number int) (*conn, error) {
	s.mu.Lock()
	for len(s.all) <= number && !s.closed {
		s.all = append(s.all, new(session))
	}
	if s.closed {
		s.mu.Unlock()
		return nil, errClosed
	}
	one := s.all[number]
	s.mu.Unlock()
	one.once.Do(func() {
		stream, err := s.open(ctx, true)
		if err != nil {
			one.err = err
			return
		}
		one.conn = newConn(stream, s.dialect, s.dir, s.log)
	})
	return one.conn, one.err
}

// Greet waits for the far end's greeting, so that an error of starting it is told
// before anything else is done. Without it the first request does that.
func (s *sessions) Greet(ctx context.Context) error { return s.first.greet(ctx) }

// Describe names the program at the far end and its protocol, for people. It may
// be called after the first answer.
func (s *sessions) Describe() string {
	program := s.Program()
	if program == "" {
		program = "a program of the far end's choice"
	}
	return fmt.Sprintf("%s, %s %d.%d", program, s.dialect.name(), s.first.version>>8, s.first.version&0xff)
}

// Program is what serves at the far end: the words that were asked for, or the path of
// what was found; empty where the far end chose it or before the first answer.
func (s *sessions) Program() string {
	if s.asked != "" {
		return s.asked
	}
	select {
	case <-s.first.greeted:
		return s.first.prelude.program
	default:
		return ""
	}
}

// Forced reports whether the far end ignored our start script, as it does where a
// forced command decides what runs. It is known after the first answer, and cannot be
// told where a program was asked for by name.
func (s *sessions) Forced() bool {
	select {
	case <-s.first.greeted:
		return s.Program() == ""
	default:
		return false
	}
}

// RoundTrips returns how often a caller had to wait for an answer so far.
func (s *sessions) RoundTrips() int { return int(s.rounds.Load()) }

// OpenLane returns a lane: the first uses the session that is there, a further one
// opens its own. Lanes end with their Store.
func (s *sessions) OpenLane(ctx context.Context) (*Lane, error) {
	s.mu.Lock()
	number := s.inLanes
	s.inLanes++
	s.mu.Unlock()
	c, err := s.session(ctx, number)
	if err != nil {
		return nil, err
	}
	return &Lane{c: c, dialect: s.lanes}, nil
}

// Close ends all sessions, and with them the far end's temporary roots. It returns
// an error if a far program ended badly although every request was answered.
func (s *sessions) Close() error {
	s.mu.Lock()
	s.closed = true
	all := s.all
	s.mu.Unlock()
	errs := make([]error, len(all))
	var ending sync.WaitGroup
	for i, one := range all {
		ending.Go(func() {
			one.once.Do(func() { one.err = errClosed })
			if one.conn != nil {
				errs[i] = one.conn.close()
			}
		})
	}
	ending.Wait()
	return errors.Join(errs...)
}

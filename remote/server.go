package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// Commands that only the server knows; the client has no use for them.
const (
	cmdExportPaths     = 5
	cmdBuildPaths      = 6
	cmdBuildDerivation = 8
)

// A Backend is the store that a session is served from. Its methods are called by
// one goroutine at a time, WriteNAR and those of an Importer excepted.
type Backend interface {
	StoreDir() nix.StoreDir
	// ValidPaths returns those of paths that are valid, in any order.
	ValidPaths(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error)
	// PathInfos returns the infos of those of paths that are valid, in any order.
	PathInfos(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error)
	// Closure returns the roots and all they refer to, in any order. The error
	// wraps nix.ErrNotValid and names the root where one is not valid.
	Closure(ctx context.Context, roots []nix.StorePath) ([]*nix.PathInfo, error)
	// WriteNAR may have written part of the contents when it fails.
	WriteNAR(ctx context.Context, w io.Writer, p nix.StorePath) error
	// Hold keeps paths, valid or not, from garbage collection until the backend
	// is closed.
	Hold(ctx context.Context, paths []nix.StorePath) error
	// Import begins to take paths in; ctx holds until the Importer is closed.
	Import(ctx context.Context) (Importer, error)
}

// An Importer takes paths one after another and makes them valid in groups.
// Flush may be called while an Add runs.
type Importer interface {
	// Add reads exactly info.NARSize bytes before it returns. done is called
	// once, then or later, on any goroutine and in any order among paths: with
	// nil when the path is valid, also if it was before, else with the reason
	// why it is refused. The error returned means that the stream is out of step;
	// done need not be called any more.
	Add(ctx context.Context, info *nix.PathInfo, nar io.Reader, done func(error)) error
	// Flush returns when done was called for all that was added before.
	Flush(ctx context.Context) error
	// Close makes valid what is complete and removes what is not.
	Close() error
}

// A Substituter makes paths valid in the backend that it can get elsewhere.
type Substituter interface {
	// Substitute returns when it has tried all of paths. What it cannot get
	// stays missing and is no error.
	Substitute(ctx context.Context, paths []nix.StorePath) error
}

// A ForeseeingSubstituter is a Substituter that knows beforehand what it can get.
type ForeseeingSubstituter interface {
	// Foresee returns those of paths, and of all that they refer to, that are not
	// valid and that it can get, and the bytes that it would download.
	Foresee(ctx context.Context, paths []nix.StorePath) (infos []*nix.PathInfo, download int64, err error)
}

// A NamedSubstituter is a Substituter to which clients of the worker protocol name
// caches.
type NamedSubstituter interface {
	// Name tells which caches the client's configuration has. Which of them are used
	// is the substituter's decision.
	Name(addresses []string)
}

// A Meeting is where further sessions of a client find the first.
type Meeting interface {
	// Token is the secret of tokenSize bytes that they name.
	Token() []byte
	// Accept waits for the streams of one; its error is final.
	Accept() (io.ReadWriteCloser, error)
	// Close ends Accept, not what it returned.
	Close() error
}

// ServerOptions say what a client may do. The zero value serves readers only, and
// as Nix without --write takes no temporary roots for them.
type ServerOptions struct {
	Write       bool                      // the client may add paths
	Hold        bool                      // its lock flag is honoured, also without Write
	Check       func(*nix.PathInfo) error // refuses paths before they are read; nil accepts all
	Vouched     func(*nix.PathInfo) bool  // whose paths are kept when their NARs break off; nil: all
	Keys        nix.TrustedKeys           // whose signatures a client of the worker protocol may add without being trusted
	Trust       bool                      // a client of the worker protocol may ask to go without Check
	Peer        bool                      // offer the peer protocol to the client, which knows it
	Meeting     Meeting                   // takes further lanes of that; nil: there can be none
	InOrder     bool                      // the importer wants references before referrers
	Untrusted   bool                      // tell the client of the peer protocol that unsigned paths are refused
	Room        func() *Room              // tells a client of the peer protocol what is free; nil: nobody
	Atomic      bool                      // the importer is an AtomicImporter
	Foresees    bool                      // the Substituter is a SearchingSubstituter; offered with Peer
	Window      func(bytes int)           // is told how much a client of the peer protocol has under way; nil: nobody asks
	Plans       bool                      // a reader may ask what the Substituter has, too
	Substituter Substituter               // used with Write where the client asks for it; nil finds nothing
	Logger      *slog.Logger              // nil discards
}

// Serve answers one client of Nix's serve protocol, as nix-store --serve does,
// until it hangs up between two requests, which is no error. The protocol cannot
// tell errors: whoever calls Serve prints its error where the client's user sees
// it and ends with a status that is not zero.
//
// Requests may come ahead of the answers to earlier ones. The stream is closed
// when Serve returns; its Close must end a Read that waits.
func Serve(ctx context.Context, stream io.ReadWriteCloser, b Backend, o ServerOptions) error {
	s := newServer(stream, b, o)
	s.verdict = serveVerdict
	return s.run(ctx, s.serve)
}

func newServer(stream io.ReadWriteCloser, b Backend, o ServerOptions) *server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &server{
		backend: b,
		dir:     b.StoreDir(),
		options: o,
		stream:  stream,
		out:     wire.NewWriter(stream),
		stopped: make(chan struct{}),
	}
	s.in = wire.NewReader(serverInput{s})
	return s
}

// run serves until the session ends, and returns why it did.
func (s *server) run(ctx context.Context, serve func(context.Context) error) error {
	unwatch := context.AfterFunc(ctx, func() { s.stop(context.Cause(ctx)) })
	defer unwatch()
	err := serve(ctx)
	if s.adds != nil {
		err = s.endAdds(err)
	}
	s.stop(err)
	return s.cause
}

// A server is one session.
type server struct {
	backend Backend
	dir     nix.StoreDir
	options ServerOptions
	stream  io.ReadWriteCloser
	in      *wire.Reader
	out     *wire.Writer // empty while adds are not acknowledged
	version uint64       // the client's; it decides which fields there are
	adds    *serverAdds  // nil before the first
	between bool         // no request is being read: the client may be silent

	// verdict appends the words that a client gets for a path. Its error ends the
	// session.
	verdict func(words []byte, add serverAdd, err error) ([]byte, error)

	once    sync.Once
	cause   error         // why the session ended; set before stopped is closed
	stopped chan struct{} // closed when the session ends
}

// stop ends the session and with it a Read that waits. The first cause counts.
func (s *server) stop(cause error) {
	s.once.Do(func() {
		s.cause = cause
		close(s.stopped)
		s.stream.Close()
	})
}

// serverInput hands on all answers before it waits for more from the client.
type serverInput struct{ s *server }

func (in serverInput) Read(p []byte) (int, error) {
	if err := in.s.out.Flush(); err != nil {
		return 0, err
	}
	if !in.s.between {
		silent := time.AfterFunc(requestSilence, func() { in.s.stop(errSilentClient) })
		defer silent.Stop()
	}
	return in.s.stream.Read(p)
}

// nextCommand waits for a request, as long as the client likes.
func (s *server) nextCommand() uint64 {
	s.between = true
	command := s.in.Uint64()
	s.between = command == cmdPeer && s.options.Peer // which has heartbeats
	return command
}

// serve reads requests until the client is gone. The error that it returns gives
// way to the cause of a stop.
func (s *server) serve(ctx context.Context) error {
	if err := s.greet(); err != nil {
		return err
	}
	for {
		if s.adds != nil && s.in.Buffered() == 0 {
			s.adds.flush()
		}
		command := s.nextCommand()
		if err := s.in.Err(); errors.Is(err, io.EOF) {
			return s.settle()
		} else if err != nil {
			return fmt.Errorf("read a request: %w", err)
		}
		if command == cmdPeer && s.options.Peer {
			return s.servePeer(ctx)
		}
		if command != cmdAddToStoreNar {
			if err := s.settle(); err != nil {
				return err
			}
		}
		if err := s.answer(ctx, command); err != nil {
			return err
		}
	}
}

func (s *server) greet() error {
	magic := s.in.Uint64()
	if err := s.in.Err(); err != nil {
		return fmt.Errorf("read the client's greeting: %w", err)
	}
	if magic != serveMagicClient {
		return &wire.FormatError{Msg: "protocol mismatch: the client does not speak Nix's serve protocol"}
	}
	if s.options.Peer {
		s.out.Write([]byte(s.offer().line()))
	}
	s.out.Uint64(serveMagicServer)
	s.out.Uint64(serveVersion)
	s.version = s.in.Uint64()
	if err := s.in.Err(); err != nil {
		return fmt.Errorf("read the client's greeting: %w", err)
	}
	if s.version>>8 != serveVersion>>8 {
		return &wire.FormatError{Msg: fmt.Sprintf("the client speaks version %d.%d of the serve protocol, this is %d.%d",
			s.version>>8, s.version&0xff, serveVersion>>8, serveVersion&0xff)}
	}
	return nil
}

// since reports whether the client knows the fields of version 2.minor.
func (s *server) since(minor uint64) bool { return s.version >= 2<<8|minor }

func (s *server) answer(ctx context.Context, command uint64) error {
	switch command {
	case cmdQueryValidPaths:
		return s.queryValidPaths(ctx)
	case cmdQueryPathInfos:
		return s.queryPathInfos(ctx)
	case cmdDumpStorePath:
		return s.dumpStorePath(ctx)
	case cmdImportPaths:
		return s.importPaths(ctx)
	case cmdExportPaths:
		return s.exportPaths(ctx)
	case cmdBuildPaths:
		return s.buildPaths(ctx)
	case cmdQueryClosure:
		return s.queryClosure(ctx)
	case cmdBuildDerivation:
		return s.buildDerivation()
	case cmdAddToStoreNar:
		return s.addToStoreNAR(ctx)
	case cmdForesee:
		return s.foresee(ctx)
	}
	return &wire.FormatError{Msg: fmt.Sprintf("unknown serve command %d", command)}
}

// request returns the error of reading a request's fields, if there was one.
func (s *server) request(what string) error {
	if err := s.in.Err(); err != nil {
		return fmt.Errorf("read a request to %s: %w", what, err)
	}
	return nil
}

// mayWrite returns an error unless the client may change the store.
func (s *server) mayWrite(what string) error {
	if !s.options.Write {
		return fmt.Errorf("this session may not %s: it was started without --write", what)
	}
	return nil
}

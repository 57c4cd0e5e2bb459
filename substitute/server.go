package substitute

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// Limits of a Server that are not set.
const (
	DefaultTransfers = 64
	defaultRequests  = 1024
	defaultPatience  = 30 * time.Second
	defaultStall     = time.Minute
)

// ServerOptions say what a Server does besides serving. The zero value is good.
type ServerOptions struct {
	PublicKeys []nix.PublicKey // shown to people
	URL        string          // of the cache for clients; empty: as the client of the page calls it
	Listing    bool            // let people look for paths on the page

	Transfers int           // contents that are sent at once; 0: DefaultTransfers
	Requests  int           // requests at once, waiting ones included; 0: 1024
	Patience  time.Duration // for which a transfer waits for its turn; 0: 30 s
	Stall     time.Duration // after which a client that takes nothing is given up; 0: one minute

	AccessLog *slog.Logger // gets a line for each request; nil: none
	Logger    *slog.Logger // gets what went wrong; nil discards
}

// A Server answers the requests of Nix and of browsers for one cache. It is an
// http.Handler; Serve gives it the limits that a handler cannot set.
type Server struct {
	cache     served
	options   ServerOptions
	requests  chan struct{} // one for each under way
	transfers chan struct{} // one for each that sends contents
	index     index
}

// served is what a Server serves: a live store, or the files of a cache.
type served interface {
	// serve answers a request for a file. An error that comes before anything is
	// written wraps fs.ErrNotExist or nix.ErrNotValid where there is no such file.
	serve(s *Server, res *response, r *http.Request, name string) error
	// info describes the cache.
	info(ctx context.Context) (CacheInfo, error)
	// list returns all paths.
	list(ctx context.Context) ([]nix.StorePath, error)
	// lookup returns what is known of a path; the error is as that of serve.
	lookup(ctx context.Context, part string) (*NARInfo, error)
}

func newServer(cache served, o ServerOptions) *Server {
	o.Transfers = orDefault(o.Transfers, DefaultTransfers)
	o.Requests = orDefault(o.Requests, defaultRequests)
	o.Patience = orDefault(o.Patience, defaultPatience)
	o.Stall = orDefault(o.Stall, defaultStall)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{
		cache: cache, options: o,
		requests:  make(chan struct{}, o.Requests),
		transfers: make(chan struct{}, o.Transfers),
	}
}

func orDefault[T int | time.Duration](v, otherwise T) T {
	if v == 0 {
		return otherwise
	}
	return v
}

// errBusy says that there is more to do than may be done at once.
var errBusy = errors.New("too many requests at once, try again later")

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	begun := time.Now()
	res := newResponse(w, s.options.Stall)
	if s.options.AccessLog != nil {
		defer func() { s.logAccess(res, r, begun) }()
	}
	if r.ContentLength != 0 {
		// Nobody waits for a body that nobody wants.
		_ = res.control.SetReadDeadline(begun.Add(time.Second))
	}
	res.Header().Set("X-Content-Type-Options", "nosniff")
	select {
	case s.requests <- struct{}{}:
		defer func() { <-s.requests }()
	default:
		s.fail(res, r, errBusy)
		return
	}
	if err := s.answer(res, r); err != nil {
		s.fail(res, r, err)
	}
}

// answer finds out who answers.
func (s *Server) answer(res *response, r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		res.Header().Set("Allow", "GET, HEAD")
		plain(res, http.StatusMethodNotAllowed, "this cache can only be read")
		return nil
	}
	switch name := strings.TrimPrefix(r.URL.Path, "/"); {
	case name == "":
		return s.page(res, r)
	case name == pageStyleName:
		return s.style(res, r)
	case name == "healthz":
		return s.health(res, r)
	case !isFileName(name):
		return fs.ErrNotExist
	default:
		return s.cache.serve(s, res, r, name)
	}
}

// isFileName reports whether a cache can have a file of that name: words of a few
// harmless characters between slashes, none of which begins with a dot.
func isFileName(name string) bool {
	const longest = 512
	if len(name) > longest {
		return false
	}
	for word := range strings.SplitSeq(name, "/") {
		if word == "" || word[0] == '.' || strings.ContainsFunc(word, isForeign) {
			return false
		}
	}
	return true
}

func isForeign(c rune) bool {
	switch {
	case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		return false
	}
	return !strings.ContainsRune("+-._?=:!", c)
}

// fail ends a request that an error has stopped. Where a part of the contents is on
// its way, cutting the connection is the only honest answer.
func (s *Server) fail(res *response, r *http.Request, err error) {
	gone := r.Context().Err() != nil
	switch {
	case res.status != 0:
		res.broken = true
		if !gone {
			s.options.Logger.Warn("broken off: "+err.Error(), "request", fmt.Sprintf("%.200q", r.URL.Path), "client", r.RemoteAddr)
		}
		panic(http.ErrAbortHandler)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, nix.ErrNotValid), errors.Is(err, nix.ErrNoRealisation):
		plain(res, http.StatusNotFound, "not in this cache")
	case errors.Is(err, errBusy):
		res.Header().Set("Retry-After", "2")
		plain(res, http.StatusServiceUnavailable, err.Error())
	case gone:
		panic(http.ErrAbortHandler)
	default:
		s.options.Logger.Warn(err.Error(), "request", fmt.Sprintf("%.200q", r.URL.Path), "client", r.RemoteAddr)
		plain(res, http.StatusInternalServerError, "the cache could not answer; its log says why")
	}
}

// plain answers with a line of text that nobody keeps.
func plain(res *response, status int, text string) {
	h := res.Header()
	h.Del("ETag")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", fmt.Sprint(len(text)+1))
	res.WriteHeader(status)
	fmt.Fprintln(res, text)
}

// health tells whether the cache can be read at all.
func (s *Server) health(res *response, r *http.Request) error {
	if _, err := s.cache.info(r.Context()); err != nil {
		s.options.Logger.Warn("not healthy: " + err.Error())
		plain(res, http.StatusServiceUnavailable, "the cache cannot be read")
		return nil
	}
	plain(res, http.StatusOK, "ok")
	return nil
}

// transfer waits for the right to send contents; leave gives it back.
func (s *Server) transfer(ctx context.Context) (leave func(), err error) {
	patience := time.NewTimer(s.options.Patience)
	defer patience.Stop()
	select {
	case s.transfers <- struct{}{}:
		return func() { <-s.transfers }, nil
	case <-patience.C:
		return nil, errBusy
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// crowded reports whether every processor has a transfer to work on.
func (s *Server) crowded() bool { return len(s.transfers) >= runtime.GOMAXPROCS(0) }

// logAccess writes the line of a request, also of one that was broken off.
func (s *Server) logAccess(res *response, r *http.Request, begun time.Time) {
	s.options.AccessLog.Info(r.Method+" "+fmt.Sprintf("%.300q", r.URL.RequestURI()),
		"status", res.status, "bytes", res.sent, "complete", !res.broken, "took", time.Since(begun).Round(time.Microsecond),
		"client", r.RemoteAddr, "agent", fmt.Sprintf("%.100q", r.UserAgent()))
}

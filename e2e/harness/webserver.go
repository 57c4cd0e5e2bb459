package harness

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// WebFaults are what can be wrong with a [WebServer].
type WebFaults struct {
	BreakNARs bool // the first answer with each NAR breaks off in the middle
	LoseNARs  bool // there are no NARs
	FlipNARs  bool // a byte of each NAR is another one
	Page      bool // every answer is 200 with a page for people
	Hang      bool // no answer ever comes
	Rate      int  // bytes of NARs a second, for all; 0: as fast as it goes
}

// A WebServer serves a directory on the loopback interface.
type WebServer struct {
	URL    string
	dir    string
	faults WebFaults
	server *http.Server
	limit  *rate.Limiter

	mu     sync.Mutex
	served map[string]int // answers by path
}

// ServeFiles starts a server, which ends with ctx.
func ServeFiles(ctx context.Context, dir string, faults WebFaults) (*WebServer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	w := &WebServer{URL: "http://" + l.Addr().String(), dir: dir, faults: faults, served: make(map[string]int)}
	w.limit = rate.NewLimiter(rate.Limit(faults.Rate), faults.Rate/50+1)
	w.server = &http.Server{Handler: w, BaseContext: func(net.Listener) context.Context { return ctx }}
	go w.server.Serve(l)
	context.AfterFunc(ctx, func() { w.server.Close() })
	return w, nil
}

// Served returns the number of answers with files whose names end with suffix.
func (w *WebServer) Served(suffix string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, count := range w.served {
		if strings.HasSuffix(name, suffix) {
			n += count
		}
	}
	return n
}

func (w *WebServer) count(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.served[name]++
	return w.served[name]
}

// ServeHTTP implements http.Handler.
func (w *WebServer) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	name := r.URL.Path
	nar := strings.HasPrefix(name, "/nar/")
	times := w.count(name)
	switch {
	case w.faults.Hang:
		<-r.Context().Done()
	case w.faults.Page:
		io.WriteString(out, "<!DOCTYPE html>\n<title>Welcome</title>\n")
	case nar && w.faults.LoseNARs:
		http.NotFound(out, r)
	case nar && w.faults.BreakNARs && times == 1:
		w.breakOff(out, name)
	case nar && w.faults.FlipNARs:
		w.flip(out, r, name)
	case nar && w.faults.Rate > 0:
		http.ServeFile(&slowWriter{out, r.Context(), w.limit}, r, filepath.Join(w.dir, name))
	default:
		http.ServeFile(out, r, filepath.Join(w.dir, name))
	}
}

// breakOff sends half of a file.
func (w *WebServer) breakOff(out http.ResponseWriter, name string) {
	text, err := os.ReadFile(filepath.Join(w.dir, name))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	out.Header().Set("Content-Length", fmt.Sprint(len(text)))
	out.Write(text[:len(text)/2])
	out.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

func (w *WebServer) flip(out http.ResponseWriter, r *http.Request, name string) {
	text, err := os.ReadFile(filepath.Join(w.dir, name))
	if err != nil {
		http.NotFound(out, r)
		return
	}
	text[len(text)/2] ^= 1
	http.ServeContent(out, r, "", time.Time{}, strings.NewReader(string(text)))
}

// A slowWriter shares a rate with the others of a server.
type slowWriter struct {
	http.ResponseWriter
	ctx   context.Context
	limit *rate.Limiter
}

func (w *slowWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		part := p[:min(len(p), w.limit.Burst())]
		if err = w.limit.WaitN(w.ctx, len(part)); err != nil {
			break
		}
		var m int
		m, err = w.ResponseWriter.Write(part)
		n += m
		p = p[m:]
	}
	return n, err
}

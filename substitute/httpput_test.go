package substitute_test

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/copy-closure/copy-closure/substitute"
)

// davServer keeps files in memory, as a server of WebDAV that wants directories made.
func davServer(files map[string]string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		dir := r.URL.Path[:strings.LastIndexByte(r.URL.Path, '/')+1]
		_, there := files[r.URL.Path]
		switch {
		case r.Method == "MKCOL":
			files[r.URL.Path] = "directory"
		case r.Method == http.MethodPut && files[dir] == "":
			w.WriteHeader(http.StatusConflict)
		case r.Method == http.MethodPut:
			text, _ := io.ReadAll(r.Body)
			files[r.URL.Path] = r.Header.Get("Content-Type") + " " + string(text)
			w.WriteHeader(http.StatusCreated)
		case !there:
			http.NotFound(w, r)
		case r.Method == http.MethodDelete:
			delete(files, r.URL.Path)
			w.WriteHeader(http.StatusNoContent)
		default:
			io.WriteString(w, files[r.URL.Path])
		}
	}
}

func TestHTTPPut(t *testing.T) {
	ctx, files := t.Context(), map[string]string{"/cache/": "directory"}
	cache := webCache(t, substitute.WebOptions{}, davServer(files))
	for range 2 {
		if err := cache.Put(ctx, "nar/a.nar.zst", strings.NewReader("contents"), 8); err != nil {
			t.Fatal(err)
		}
	}
	if got := files["/cache/nar/a.nar.zst"]; got != "application/x-nix-nar contents" {
		t.Errorf("there is %q", got)
	}
	if n, err := cache.Size(ctx, "nar/a.nar.zst"); n <= 0 || err != nil {
		t.Errorf("size %d, %v", n, err)
	}
	for range 2 {
		if err := cache.Remove(ctx, "nar/a.nar.zst"); err != nil {
			t.Error(err)
		}
	}
	if _, err := cache.Size(ctx, "nar/a.nar.zst"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed: %v", err)
	}
}

// TestHTTPNamesStayInTheCache has names such as a hostile narinfo may hold.
func TestHTTPNamesStayInTheCache(t *testing.T) {
	ctx, asked := t.Context(), 0
	cache := webCache(t, substitute.WebOptions{}, func(http.ResponseWriter, *http.Request) { asked++ })
	for _, name := range []string{"../other/a", "nar/../../a", "/a", "", ".", "nar//a"} {
		_, sizeErr := cache.Size(ctx, name)
		for _, err := range []error{sizeErr, cache.Put(ctx, name, strings.NewReader("a"), 1), cache.Remove(ctx, name)} {
			if err == nil {
				t.Errorf("%q is taken as the name of a file", name)
			}
		}
	}
	if asked > 0 {
		t.Errorf("the server got %d requests", asked)
	}
}

func TestHTTPPutEmpty(t *testing.T) {
	cache := webCache(t, substitute.WebOptions{}, func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
			w.WriteHeader(http.StatusLengthRequired)
		}
	})
	if err := cache.Put(t.Context(), "a", strings.NewReader(""), 0); err != nil {
		t.Error(err)
	}
}

func TestHTTPPutRefused(t *testing.T) {
	for code, want := range map[int]string{403: "allow PUT", 404: "allow PUT", 405: "allow PUT", 401: "netrc", 413: "413"} {
		cache := webCache(t, substitute.WebOptions{}, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(code) })
		err := cache.Put(t.Context(), "a", strings.NewReader("contents"), 8)
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%d: %v", code, err)
		}
	}
}

// TestHTTPPutAgain has a server that breaks off, and one that answers later.
func TestHTTPPutAgain(t *testing.T) {
	var asked atomic.Int32
	cache := webCache(t, substitute.WebOptions{}, func(w http.ResponseWriter, r *http.Request) {
		switch asked.Add(1) {
		case 1:
			io.CopyN(io.Discard, r.Body, 1000)
			panic(http.ErrAbortHandler)
		case 2:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			if text, _ := io.ReadAll(r.Body); string(text) != contents {
				t.Errorf("got %d bytes", len(text))
			}
		}
	})
	if err := cache.Put(t.Context(), "a", strings.NewReader(contents), int64(len(contents))); err != nil || asked.Load() != 3 {
		t.Errorf("after %d requests: %v", asked.Load(), err)
	}
}

// TestHTTPPutSilence has a server that stops reading.
func TestHTTPPutSilence(t *testing.T) {
	stop := make(chan struct{})
	cache := webCache(t, substitute.WebOptions{StallTimeout: 100 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
		<-stop
	})
	defer close(stop)
	large := strings.NewReader(strings.Repeat("x", 64<<20))
	if err := cache.Put(t.Context(), "a", large, large.Size()); err == nil {
		t.Error("a server that takes nothing is waited for")
	}
}

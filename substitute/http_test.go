package substitute_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/substitute"
)

// webCache serves one handler as a cache.
func webCache(t *testing.T, o substitute.WebOptions, handler http.HandlerFunc) *substitute.HTTP {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	cache, err := substitute.NewWeb(o).Cache(server.URL + "/cache?priority=3")
	if err != nil {
		t.Fatal(err)
	}
	return cache
}

// fetch reads a whole file.
func fetch(t *testing.T, files substitute.Files, name string) (string, error) {
	t.Helper()
	f, err := files.Open(t.Context(), name, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	return string(text), err
}

// contents is long enough to break off in the middle of.
var contents = strings.Repeat("0123456789abcdef", 1<<12)

func TestHTTPStatus(t *testing.T) {
	for code, want := range map[int]string{
		200: "", 404: "absent", 410: "absent", 403: "absent",
		401: "netrc", 400: "400 Bad Request", 501: "501",
	} {
		cache := webCache(t, substitute.WebOptions{}, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(code) })
		_, err := fetch(t, cache, "nix-cache-info")
		switch {
		case want == "" && err == nil:
		case want == "absent" && errors.Is(err, fs.ErrNotExist):
		case want != "" && err != nil && strings.Contains(err.Error(), want) && !errors.Is(err, fs.ErrNotExist):
		default:
			t.Errorf("%d: got %v, want %q", code, err, want)
		}
	}
}

func TestHTTPRetries(t *testing.T) {
	var asked atomic.Int32
	cache := webCache(t, substitute.WebOptions{}, func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, r.URL.Path)
	})
	if got, err := fetch(t, cache, "nar/a.nar"); got != "/cache/nar/a.nar" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	asked.Store(0)
	cache = webCache(t, substitute.WebOptions{Attempts: 2}, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusBadGateway)
	})
	if _, err := fetch(t, cache, "nar/a.nar"); err == nil || asked.Load() != 2 {
		t.Errorf("after %d requests: %v", asked.Load(), err)
	}
}

// breakOff sends part of contents and cuts the connection.
func breakOff(w http.ResponseWriter, first, last int) {
	w.Header().Set("Content-Length", fmt.Sprint(len(contents)-first))
	if first > 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, len(contents)-1, len(contents)))
		w.WriteHeader(http.StatusPartialContent)
	}
	io.WriteString(w, contents[first:last])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

func TestHTTPResumes(t *testing.T) {
	whole := func(w http.ResponseWriter, tag string) {
		w.Header().Set("ETag", tag)
		io.WriteString(w, contents)
	}
	cases := []struct {
		name   string
		second func(w http.ResponseWriter, r *http.Request)
		want   string
	}{
		{"by range", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"one"`)
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(contents))
		}, ""},
		{"from the beginning", func(w http.ResponseWriter, r *http.Request) { whole(w, `"one"`) }, ""},
		{"another file", func(w http.ResponseWriter, r *http.Request) { whole(w, `"two"`) }, ""},
		{"a part by another server", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"two"`)
			r.Header.Del("If-Range")
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(contents))
		}, ""},
		{"a part as if it were all", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 40000-%d/%d", len(contents)-1, len(contents)))
			io.WriteString(w, contents[40000:])
		}, ""},
		{"another size", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(contents)-1))
			io.WriteString(w, contents[1:])
		}, "changed"},
		{"gone", func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }, "404"},
		{"wrong range", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"one"`)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 7-%d/%d", len(contents)-1, len(contents)))
			w.WriteHeader(http.StatusPartialContent)
		}, "from byte 7 on"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var asked atomic.Int32
			cache := webCache(t, substitute.WebOptions{}, func(w http.ResponseWriter, r *http.Request) {
				if asked.Add(1) == 1 {
					w.Header().Set("ETag", `"one"`)
					breakOff(w, 0, 40000)
				}
				c.second(w, r)
			})
			got, err := fetch(t, cache, "nar/a.nar")
			if c.want == "" && (got != contents || err != nil) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if asked.Load() != 2 {
				t.Errorf("%d requests", asked.Load())
			}
		})
	}
}

// TestHTTPSilence never has its answer: neither before the header nor after it.
func TestHTTPSilence(t *testing.T) {
	for _, header := range []bool{false, true} {
		var asked atomic.Int32
		cache := webCache(t, substitute.WebOptions{StallTimeout: 50 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			if header {
				w.(http.Flusher).Flush()
			}
			<-r.Context().Done()
		})
		if _, err := fetch(t, cache, "nar/a.nar"); err == nil || asked.Load() != 1 {
			t.Errorf("header %v: after %d requests: %v", header, asked.Load(), err)
		}
	}
}

func TestHTTPRedirects(t *testing.T) {
	cache := webCache(t, substitute.WebOptions{}, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/cache/moved":
			http.Redirect(w, r, "/elsewhere", http.StatusMovedPermanently)
		case "/elsewhere":
			io.WriteString(w, "here")
		default:
			http.Redirect(w, r, "loop", http.StatusFound)
		}
	})
	if got, err := fetch(t, cache, "moved"); got != "here" || err != nil {
		t.Errorf("moved: %q, %v", got, err)
	}
	if _, err := fetch(t, cache, "loop"); err == nil || !strings.Contains(err.Error(), "redirects") {
		t.Errorf("an endless redirect: %v", err)
	}
}

// TestHTTPCredentials must not give them to another server.
func TestHTTPCredentials(t *testing.T) {
	var seen atomic.Value
	handler := func(w http.ResponseWriter, r *http.Request) {
		name, password, _ := r.BasicAuth()
		seen.Store(name + ":" + password)
	}
	other := httptest.NewServer(http.HandlerFunc(handler))
	defer other.Close()
	server := httptest.NewServer(http.HandlerFunc(handler))
	defer server.Close()
	address, _ := url.Parse(server.URL)
	web := substitute.NewWeb(substitute.WebOptions{Credentials: func(host string) (string, string, bool) {
		return "netrc", "word", host == address.Hostname()
	}})
	address.User = url.UserPassword("user", "secret")
	for _, c := range []struct{ cache, name, want string }{
		{server.URL, "a", "netrc:word"},
		{address.String(), "a", "user:secret"},
		{address.String(), other.URL + "/a", ":"},
	} {
		cache, err := web.Cache(c.cache)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(cache.String(), "secret") {
			t.Errorf("%s shows the password", cache)
		}
		if _, err := fetch(t, cache, c.name); err != nil || seen.Load() != c.want {
			t.Errorf("%s %s: got %v, %v; want %s", c.cache, c.name, seen.Load(), err, c.want)
		}
	}
}

// TestHTTPRedirectCredentials compares what servers are told after a redirect, or for a
// file with an absolute URL, with what curl tells them.
func TestHTTPRedirectCredentials(t *testing.T) {
	harness.Need(t, "curl")
	var mu sync.Mutex
	var seen []string
	take := func() []string {
		mu.Lock()
		defer mu.Unlock()
		all := seen
		seen = nil
		return all
	}
	note := func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.URL.Path+" "+r.Header.Get("Authorization"))
		if r.Header.Get("Referer")+r.Header.Get("Cookie") != "" {
			t.Errorf("%s: the request has %v", r.URL, r.Header)
		}
		if to := r.URL.Query().Get("to"); to != "" {
			http.SetCookie(w, &http.Cookie{Name: "a", Value: "b"})
			http.Redirect(w, r, to, http.StatusFound)
		}
	}
	other := httptest.NewServer(http.HandlerFunc(note))
	defer other.Close()
	server := httptest.NewServer(http.HandlerFunc(note))
	defer server.Close()
	secure := httptest.NewTLSServer(http.HandlerFunc(note))
	defer secure.Close()
	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	for _, to := range []string{
		"/c/b", "b", server.URL + "/c/b", "//" + server.Listener.Addr().String() + "/c/b",
		other.URL + "/c/b", "//" + other.Listener.Addr().String() + "/c/b",
		"http://localhost:" + port + "/c/b", "http://a:b@localhost:" + port + "/c/b",
		other.URL + "/c/b?to=" + url.QueryEscape(server.URL+"/c/d"),
	} {
		if out, err := exec.Command("curl", "-sSfL", "--noproxy", "*", "-u", "user:secret", server.URL+"/c/a?to="+url.QueryEscape(to)).CombinedOutput(); err != nil {
			t.Fatalf("curl: %v: %s", err, out)
		}
		want := take()
		cache, err := substitute.NewWeb(substitute.WebOptions{}).Cache(strings.Replace(server.URL, "://", "://user:secret@", 1) + "/c")
		if err != nil {
			t.Fatal(err)
		}
		_, err = fetch(t, cache, "a?to="+url.QueryEscape(to))
		if got := take(); err != nil || !slices.Equal(got, want) {
			t.Errorf("redirected to %s: %q, %v; curl: %q", to, got, err, want)
		}
		_, err = fetch(t, cache, to)
		if got := take(); err != nil || !slices.Equal(got, want[1:]) {
			t.Errorf("a file at %s: %q, %v; want %q", to, got, err, want[1:])
		}
	}
	cache, err := substitute.NewWeb(substitute.WebOptions{}).Cache(secure.URL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fetch(t, cache, server.URL+"/c/a"); err == nil || !strings.Contains(err.Error(), "from https to http") {
		t.Errorf("a file of a secure cache at an insecure server: %v", err)
	}
}

// TestHTTPRedirectOfPut must not take the answer to another request for that to a PUT.
func TestHTTPRedirectOfPut(t *testing.T) {
	cache := webCache(t, substitute.WebOptions{}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/cache/a" {
			http.Redirect(w, r, "/b", http.StatusFound)
		}
	})
	if err := cache.Put(t.Context(), "a", strings.NewReader("a"), 1); err == nil || !strings.Contains(err.Error(), "302") {
		t.Errorf("Put: %v", err)
	}
}

func TestHTTPContentEncoding(t *testing.T) {
	cache := webCache(t, substitute.WebOptions{}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		io.WriteString(z, contents)
		z.Close()
		w.Write(b.Bytes())
	})
	if got, err := fetch(t, cache, "a.narinfo"); got != contents || err != nil {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

func TestHTTPRefusesAddresses(t *testing.T) {
	web := substitute.NewWeb(substitute.WebOptions{})
	for _, address := range []string{"ftp://host/", "http:///cache", "http://user:secret@[host", "host", "user:secret@host", "ftp://user:secret@host", "http:user:secret@host"} {
		if _, err := web.Cache(address); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// TestHTTPClosingServer asks a server that ends each connection for many files at once.
// It may not be met with all of the connections at once.
func TestHTTPClosingServer(t *testing.T) {
	const files = 60
	var mu sync.Mutex
	var now, most int
	cache := webCache(t, substitute.WebOptions{}, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		time.Sleep(time.Millisecond)
		mu.Lock()
		now--
		mu.Unlock()
		w.Header().Set("Connection", "close")
		io.WriteString(w, r.URL.Path)
	})
	if _, err := fetch(t, cache, "nix-cache-info"); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range files {
		all.Go(func() {
			name := fmt.Sprintf("nar/%d.nar", i)
			if got, err := fetch(t, cache, name); got != "/cache/"+name || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	all.Wait()
	if most > 4 {
		t.Errorf("%d requests at once", most)
	}
}

// TestHTTPTrickle has a server that is never silent for long, and would take minutes for a
// small file.
func TestHTTPTrickle(t *testing.T) {
	cache := webCache(t, substitute.WebOptions{StallTimeout: time.Second}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(contents)))
		for i := 0; i < len(contents) && r.Context().Err() == nil; i++ {
			io.WriteString(w, contents[i:i+1])
			w.(http.Flusher).Flush()
			time.Sleep(100 * time.Millisecond)
		}
	})
	if _, err := fetch(t, cache, "nar/a.nar"); err == nil || !strings.Contains(err.Error(), "less than 100 bytes a second") {
		t.Errorf("got %v", err)
	}
}

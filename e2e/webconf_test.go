package e2e_test

import (
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/substitute"
)

// proxyVariables are all that may choose a proxy.
var proxyVariables = []string{"http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"}

// TestProxyVariables compares which requests go through which proxy with what curl does.
func TestProxyVariables(t *testing.T) {
	harness.Need(t, "curl")
	for _, variables := range [][]string{
		{"all_proxy=http://A"},
		{"ALL_PROXY=http://A"},
		{"all_proxy=A"},
		{"all_proxy=http://A", "ALL_PROXY=http://B"},
		{"all_proxy=http://A", "http_proxy=http://B"},
		{"all_proxy=http://A", "https_proxy=http://B"},
		{"ALL_PROXY=http://A", "HTTPS_PROXY=http://B"},
		{"all_proxy=http://A", "no_proxy=other.test,plain.test"},
		{"all_proxy=http://A", "NO_PROXY=*"},
		{"all_proxy=http://A", "no_proxy=lain.test"},
		{"http_proxy=http://A"},
	} {
		t.Run(strings.Join(variables, " "), func(t *testing.T) {
			for _, scheme := range []string{"http", "https"} {
				url := scheme + "://plain.test/nix-cache-info"
				theirs, ours := newProxies(t), newProxies(t)
				cmd := exec.Command("curl", "--silent", "--max-time", "20", url)
				cmd.Env = append(theirs.variables(variables), "PATH="+os.Getenv("PATH"))
				cmd.Run() // fails: no proxy gets there

				for _, name := range proxyVariables {
					t.Setenv(name, "")
				}
				for _, variable := range ours.variables(variables) {
					name, value, _ := strings.Cut(variable, "=")
					t.Setenv(name, value)
				}
				cache, err := substitute.NewWeb(substitute.WebOptions{Attempts: 1}).Cache(scheme + "://plain.test")
				if err != nil {
					t.Fatal(err)
				}
				if r, err := cache.Open(t.Context(), "nix-cache-info", 0); err == nil {
					r.Close()
				}
				if got, want := ours.asked(), theirs.asked(); !slices.Equal(got, want) {
					t.Errorf("%s: asked %q, curl %q", url, got, want)
				}
			}
		})
	}
}

// proxies are two proxies, A and B, which go nowhere.
type proxies struct {
	a, b *httptest.Server

	mu   sync.Mutex
	seen []string
}

func newProxies(t *testing.T) *proxies {
	p := new(proxies)
	proxy := func(name string) *httptest.Server {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p.mu.Lock()
			p.seen = append(p.seen, name+" "+r.Method+" "+r.Host)
			p.mu.Unlock()
			w.WriteHeader(http.StatusNotFound)
		}))
		t.Cleanup(server.Close)
		return server
	}
	p.a, p.b = proxy("A"), proxy("B")
	return p
}

func (p *proxies) variables(list []string) []string {
	names := strings.NewReplacer("A", strings.TrimPrefix(p.a.URL, "http://"), "B", strings.TrimPrefix(p.b.URL, "http://"))
	var set []string
	for _, variable := range list {
		name, value, _ := strings.Cut(variable, "=")
		set = append(set, name+"="+names.Replace(value))
	}
	return set
}

func (p *proxies) asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Compact(slices.Sorted(slices.Values(p.seen)))
}

// TestWebOptions holds what nix.conf says of web servers: certificates and HTTP/2.
func TestWebOptions(t *testing.T) {
	protocols := make(chan string, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		protocols <- r.Proto
		io.WriteString(w, "StoreDir: /nix/store\n")
	}))
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	file := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		options substitute.WebOptions
		want    string // the protocol, or a part of the error
	}{
		{"HTTP/2", substitute.WebOptions{CertificateFile: file}, "HTTP/2.0"},
		{"no HTTP/2", substitute.WebOptions{CertificateFile: file, NoHTTP2: true}, "HTTP/1.1"},
		{"unknown authority", substitute.WebOptions{}, "certificate signed by unknown authority"},
		{"no such file", substitute.WebOptions{CertificateFile: file + "-none"}, "no such file"},
		{"no certificate", substitute.WebOptions{CertificateFile: os.Args[0]}, "no certificate in it"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.options.Attempts = 1
			web := substitute.NewWeb(test.options)
			cache, err := web.Cache(server.URL)
			if err == nil {
				var r io.ReadCloser
				if r, err = cache.Open(t.Context(), "nix-cache-info", 0); err == nil {
					err = r.Close()
				}
			}
			got := ""
			if err != nil {
				got = err.Error()
			} else {
				got = <-protocols
			}
			if !strings.Contains(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if _, err := web.Cache("http://plain.test"); err != nil {
				t.Errorf("http needs no certificates: %v", err)
			}
		})
	}
}

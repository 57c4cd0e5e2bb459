package substitute_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/copy-closure/copy-closure/substitute"
)

// TestIsUnreachable asks servers that cannot be used, and some that can.
func TestIsUnreachable(t *testing.T) {
	status := func(code int) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }))
		t.Cleanup(s.Close)
		return s.URL
	}
	closed := httptest.NewServer(nil)
	closed.Close()
	unknown := httptest.NewTLSServer(nil)
	t.Cleanup(unknown.Close)
	web := substitute.NewWeb(substitute.WebOptions{Attempts: 1})
	for _, test := range []struct {
		name, url string
		want      bool
	}{
		{"nobody listens", closed.URL, true},
		{"certificate of nobody", unknown.URL, true},
		{"password wanted", status(http.StatusUnauthorized), true},
		{"out of order", status(http.StatusBadGateway), true},
		{"not there", status(http.StatusNotFound), false},
		{"not allowed", status(http.StatusMethodNotAllowed), false},
	} {
		cache, err := web.Cache(test.url)
		if err != nil {
			t.Fatal(err)
		}
		_, err = cache.Open(t.Context(), "nix-cache-info", 0)
		if got := substitute.IsUnreachable(fmt.Errorf("push: %w", err)); err == nil || got != test.want {
			t.Errorf("%s: IsUnreachable(%v) = %t, want %t", test.name, err, got, test.want)
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, taken := net.Listen("tcp", listener.Addr().String())
	_, noDaemon := net.Dial("unix", "/nonexistent/socket")
	for _, err := range []error{taken, noDaemon, context.Canceled, os.ErrNotExist, errors.New("x"), nil} {
		if substitute.IsUnreachable(err) {
			t.Errorf("IsUnreachable(%v)", err)
		}
	}
}

package substitute_test

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/substitute"
)

func TestPage(t *testing.T) {
	key := testKey(t, "cache-1").Public()
	s := substitute.NewStoreServer(newLiveStore(nixtest.Chain(3)...), substitute.StoreOptions{Priority: 30},
		substitute.ServerOptions{PublicKeys: []nix.PublicKey{key}})
	res := do(s, "GET", "http://cache.example/")
	for _, want := range []string{"http://cache.example", "extra-trusted-public-keys = " + strings.ReplaceAll(key.String(), "+", "&#43;"), "<code>/nix/store</code>"} {
		if !strings.Contains(res.Body.String(), want) {
			t.Errorf("the page lacks %q: %s", want, res.Body)
		}
	}
	if strings.Contains(res.Body.String(), "chain-") {
		t.Error("paths are listed without --listing")
	}
	policy := res.Header().Get("Content-Security-Policy")
	if !strings.HasPrefix(policy, "default-src 'none';") || strings.Contains(policy, "unsafe") {
		t.Errorf("policy %q", policy)
	}
	if res := do(s, "GET", "/page.css"); res.Code != 200 || !strings.HasPrefix(res.Header().Get("Content-Type"), "text/css") {
		t.Errorf("style: %d", res.Code)
	}
}

func TestPageListing(t *testing.T) {
	c := nixtest.Chain(120)
	s := substitute.NewStoreServer(newLiveStore(c...), substitute.StoreOptions{}, substitute.ServerOptions{Listing: true})
	get := func(query string) *httptest.ResponseRecorder { return do(s, "GET", "/"+query) }
	cases := []struct {
		query       string
		has, hasNot []string
	}{
		{"", []string{"120 paths; shown: 1 to 50", "page=2", "chain-0 ", "1 reference<"}, []string{"Back"}},
		{"?page=2", []string{"shown: 51 to 100", "page=3", "Back"}, nil},
		{"?page=3", []string{"shown: 101 to 120", "Back"}, []string{"Next"}},
		{"?page=99999999999999999999", []string{"shown: 1 to 50"}, nil},
		{"?page=-7", []string{"shown: 1 to 50"}, nil},
		{"?q=CHAIN-11&page=1", []string{"11 of 120 paths", "chain-119"}, []string{"Next"}},
		{"?q=" + c[7].Info.Path.HashPart(), []string{"1 of 120 paths", "chain-7 "}, nil},
		{"?q=no-such-path", []string{"none of 120 paths"}, nil},
		{"?q=%22%3E%3Cscript%3Ealert(1)%3C/script%3E", []string{"&lt;script&gt;"}, []string{"<script"}},
		{"?q=" + strings.Repeat("%ff", 300), []string{"none of"}, nil},
	}
	for _, c := range cases {
		res := get(c.query)
		if res.Code != 200 {
			t.Errorf("%s: %d", c.query, res.Code)
		}
		for _, want := range c.has {
			if !strings.Contains(res.Body.String(), want) {
				t.Errorf("%s: the page lacks %q", c.query, want)
			}
		}
		for _, unwanted := range c.hasNot {
			if strings.Contains(res.Body.String(), unwanted) {
				t.Errorf("%s: the page has %q", c.query, unwanted)
			}
		}
	}
}

// TestPageNextLink follows the links from page to page.
func TestPageNextLink(t *testing.T) {
	s := substitute.NewStoreServer(newLiveStore(nixtest.Chain(120)...), substitute.StoreOptions{}, substitute.ServerOptions{Listing: true})
	seen := map[string]bool{}
	for target := "/?q=a%26in"; target != ""; {
		body := do(s, "GET", target).Body.String()
		for n := range 120 {
			if strings.Contains(body, fmt.Sprintf("chain-%d ", n)) {
				seen[fmt.Sprint(n)] = true
			}
		}
		before, _, more := strings.Cut(body, `" rel="next"`)
		target = ""
		if more {
			target = strings.ReplaceAll(before[strings.LastIndex(before, `"`)+1:], "&amp;", "&")
		}
		if target == "" && len(seen) == 0 {
			target = "/" // nothing has a&in in its name
		}
	}
	if len(seen) != 120 {
		t.Errorf("%d of 120 paths are to be seen", len(seen))
	}
}

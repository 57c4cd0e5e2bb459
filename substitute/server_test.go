package substitute_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/substitute"
)

// A liveStore is a store in memory as a server wants it.
type liveStore struct {
	*nixtest.Store
	holds   atomic.Int32 // that were not released
	version atomic.Int32
	block   chan struct{}
}

func (s *liveStore) Version() (any, bool) { v := s.version.Load(); return v, v != 0 }

func (s *liveStore) PathInfoFromHashPart(ctx context.Context, part string) (*nix.PathInfo, error) {
	for _, p := range s.All() {
		if p.HashPart() == part {
			return s.PathInfo(ctx, p)
		}
	}
	return nil, fmt.Errorf("%s: %w", part, nix.ErrNotValid)
}

func (s *liveStore) AllPaths(context.Context) ([]nix.StorePath, error) { return s.All(), nil }

func (s *liveStore) HoldUntil(context.Context, nix.StorePath) (func() error, error) {
	s.holds.Add(1)
	return func() error { s.holds.Add(-1); return nil }, nil
}

// WriteNAR blocks in the middle if the store is told to.
func (s *liveStore) WriteNAR(ctx context.Context, w io.Writer, p nix.StorePath) error {
	if s.block != nil {
		select {
		case <-s.block:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return s.Store.WriteNAR(ctx, w, p)
}

func newLiveStore(objects ...nixtest.Object) *liveStore {
	return &liveStore{Store: nixtest.NewStore(objects...)}
}

// bigObject is larger than what is written at once.
func bigObject() nixtest.Object {
	return nixtest.Source("big", nixtest.Node{Content: strings.Repeat("0123456789abcdef\n", 100_000)})
}

// narURL returns what the narinfo of o points to.
func narURL(t *testing.T, h http.Handler, o nixtest.Object) string {
	t.Helper()
	return "/" + narInfo(t, h, o).URL
}

func narInfo(t *testing.T, h http.Handler, o nixtest.Object) *substitute.NARInfo {
	t.Helper()
	res := do(h, "GET", "/"+substitute.NARInfoName(o.Info.Path))
	if res.Code != http.StatusOK {
		t.Fatalf("narinfo: %d %s", res.Code, res.Body)
	}
	n, err := substitute.ParseNARInfo(nixtest.Dir, res.Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// do makes a request; headers are names and values in turn. An aborted response has the
// code -1.
func do(h http.Handler, method, target string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return record(h, r)
}

func record(h http.Handler, r *http.Request) (res *httptest.ResponseRecorder) {
	res = httptest.NewRecorder()
	defer func() {
		if recover() != nil {
			res.Code = -1
		}
	}()
	h.ServeHTTP(res, r)
	return res
}

func TestServeStore(t *testing.T) {
	c := nixtest.Random(1, 30)
	store := newLiveStore(c...)
	s := substitute.NewStoreServer(store, substitute.StoreOptions{Priority: 30}, substitute.ServerOptions{})
	res := do(s, "GET", "/nix-cache-info")
	if got, want := res.Body.String(), "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n"; got != want {
		t.Errorf("nix-cache-info is %q, want %q", got, want)
	}
	for _, o := range c {
		n := narInfo(t, s, o)
		if d := cmp.Diff(n.References, o.Info.References, cmp.Comparer(func(a, b nix.StorePath) bool { return a == b })); d != "" && len(n.References) > 0 {
			t.Errorf("references of %s: %s", o.Info.Path, d)
		}
		if n.Path != o.Info.Path || n.NARHash != o.Info.NARHash || n.CA != o.Info.CA || n.Compression != substitute.None {
			t.Errorf("narinfo %+v", n)
		}
		for _, target := range []string{"/" + n.URL, "/nar/" + n.NARHash.Nix32() + ".nar?hash=" + n.Path.HashPart()} {
			res := do(s, "GET", target)
			if res.Code != http.StatusOK || !bytes.Equal(res.Body.Bytes(), o.NAR) {
				t.Errorf("%s: %d, %d bytes, want %d", target, res.Code, res.Body.Len(), len(o.NAR))
			}
			res = do(s, "HEAD", target)
			if res.Code != http.StatusOK || res.Body.Len() > 0 || res.Header().Get("Content-Length") != fmt.Sprint(len(o.NAR)) {
				t.Errorf("HEAD %s: %d %v", target, res.Code, res.Header())
			}
		}
	}
	if n := store.holds.Load(); n != 0 {
		t.Errorf("%d paths are held for ever", n)
	}
}

// TestServeChanges wants a server to know nothing that is not so any more.
func TestServeChanges(t *testing.T) {
	o := nixtest.Source("a", nixtest.Node{Content: "a"})
	target := "/" + substitute.NARInfoName(o.Info.Path)
	store := newLiveStore()
	s := substitute.NewStoreServer(store, substitute.StoreOptions{}, substitute.ServerOptions{})
	for _, version := range []int32{1, 1, 2, 0, 0, 3} { // 0: cannot be told
		store.version.Store(version)
		if res := do(s, "GET", target); res.Code != http.StatusNotFound {
			t.Errorf("version %d: %d", version, res.Code)
		}
	}
	store.Store = nixtest.NewStore(o)
	for _, version := range []int32{4, 4, 0, 5} {
		store.version.Store(version)
		if res := do(s, "GET", target); res.Code != http.StatusOK {
			t.Errorf("version %d: %d", version, res.Code)
		}
	}
	for _, version := range []int32{6, 0, 7} {
		store.Remove(o.Info.Path)
		store.version.Store(version)
		if res := do(s, "GET", target); res.Code != http.StatusNotFound {
			t.Errorf("version %d: %d", version, res.Code)
		}
	}
}

func TestServeNotFound(t *testing.T) {
	o := nixtest.Source("a", nixtest.Node{Content: "a"})
	s := substitute.NewStoreServer(newLiveStore(o), substitute.StoreOptions{}, substitute.ServerOptions{})
	part, hash := o.Info.Path.HashPart(), o.Info.NARHash.Nix32()
	for _, target := range []string{
		"/" + strings.Repeat("0", 32) + ".narinfo",
		"/" + part + ".narinf",
		"/" + part,
		"/x/" + part + ".narinfo",
		"/" + o.Info.Path.Base() + ".narinfo",
		"/nar/" + hash + ".nar",
		"/nar/" + part + "-" + hash + ".nar.xz",
		"/nar/" + part + "-" + strings.Repeat("0", 52) + ".nar",
		"/nar/" + part + "-" + o.Info.NARHash.Hex() + ".nar",
		"/nar/" + strings.Repeat("0", 32) + "-" + hash + ".nar",
		"/log/" + o.Info.Path.Base(), "/nar/", "/nar", "//", "/../etc/passwd", "/favicon.ico", "/.ls",
	} {
		for _, method := range []string{"GET", "HEAD"} {
			res := do(s, method, target)
			if res.Code != http.StatusNotFound || res.Header().Get("Cache-Control") != "no-store" || !strings.HasPrefix(res.Header().Get("Content-Type"), "text/plain") {
				t.Errorf("%s %s: %d %v", method, target, res.Code, res.Header())
			}
		}
	}
	if res := do(s, "PUT", "/nix-cache-info"); res.Code != http.StatusMethodNotAllowed || res.Header().Get("Allow") == "" {
		t.Errorf("PUT: %d", res.Code)
	}
	if res := do(s, "GET", "/healthz"); res.Code != http.StatusOK {
		t.Errorf("health: %d", res.Code)
	}
}

func TestServeRange(t *testing.T) {
	o := bigObject()
	s := substitute.NewStoreServer(newLiveStore(o), substitute.StoreOptions{Zstd: true}, substitute.ServerOptions{})
	target, size := narURL(t, s, o), int64(len(o.NAR))
	etag := do(s, "HEAD", target).Header().Get("ETag")
	all := func(first, end int64) string { return string(o.NAR[first:end]) }
	cases := []struct {
		name    string
		headers []string
		code    int
		body    string
		content string // Content-Range
	}{
		{"to the end", []string{"Range", "bytes=1000-"}, 206, all(1000, size), fmt.Sprintf("bytes 1000-%d/%d", size-1, size)},
		{"middle", []string{"Range", "bytes=7-300000"}, 206, all(7, 300001), fmt.Sprintf("bytes 7-300000/%d", size)},
		{"one byte", []string{"Range", "bytes=0-0"}, 206, all(0, 1), fmt.Sprintf("bytes 0-0/%d", size)},
		{"beyond the end", []string{"Range", "bytes=5-99999999999"}, 206, all(5, size), fmt.Sprintf("bytes 5-%d/%d", size-1, size)},
		{"last bytes", []string{"Range", "bytes=-10"}, 206, all(size-10, size), fmt.Sprintf("bytes %d-%d/%d", size-10, size-1, size)},
		{"more than all last bytes", []string{"Range", "bytes=-99999999999"}, 206, all(0, size), fmt.Sprintf("bytes 0-%d/%d", size-1, size)},
		{"behind the end", []string{"Range", fmt.Sprintf("bytes=%d-", size)}, 416, "", fmt.Sprintf("bytes */%d", size)},
		{"no last bytes", []string{"Range", "bytes=-0"}, 416, "", fmt.Sprintf("bytes */%d", size)},
		{"several", []string{"Range", "bytes=0-1,5-6"}, 200, all(0, size), ""},
		{"backwards", []string{"Range", "bytes=9-1"}, 200, all(0, size), ""},
		{"other unit", []string{"Range", "lines=1-2"}, 200, all(0, size), ""},
		{"signs", []string{"Range", "bytes=+1-+2"}, 200, all(0, size), ""},
		{"huge", []string{"Range", "bytes=99999999999999999999-"}, 200, all(0, size), ""},
		{"same", []string{"Range", "bytes=1-", "If-Range", etag}, 206, all(1, size), fmt.Sprintf("bytes 1-%d/%d", size-1, size)},
		{"another", []string{"Range", "bytes=1-", "If-Range", `"x"`}, 200, all(0, size), ""},
		{"with zstd", []string{"Range", "bytes=1-", "Accept-Encoding", "zstd"}, 206, all(1, size), fmt.Sprintf("bytes 1-%d/%d", size-1, size)},
		{"not modified", []string{"If-None-Match", `"x", ` + etag}, 304, "", ""},
		{"modified", []string{"If-None-Match", `"x"`}, 200, all(0, size), ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			res := do(s, "GET", target, c.headers...)
			if res.Code != c.code || res.Header().Get("Content-Range") != c.content {
				t.Errorf("%d %q, want %d %q", res.Code, res.Header().Get("Content-Range"), c.code, c.content)
			}
			if res.Code < 300 && res.Body.String() != c.body {
				t.Errorf("body has %d bytes, want %d", res.Body.Len(), len(c.body))
			}
			if res.Code == 206 && res.Header().Get("ETag") != etag {
				t.Errorf("tag is %s, want %s", res.Header().Get("ETag"), etag)
			}
		})
	}
}

func TestServeZstd(t *testing.T) {
	o := bigObject()
	s := substitute.NewStoreServer(newLiveStore(o), substitute.StoreOptions{Zstd: true}, substitute.ServerOptions{})
	target := narURL(t, s, o)
	for accepted, want := range map[string]string{
		"zstd": "zstd", "gzip, ZSTD;q=0.5": "zstd", "zstd;q=0": "", "gzip": "", "": "", "zstd;q=x": "", "xzstd": "",
	} {
		res := do(s, "GET", target, "Accept-Encoding", accepted)
		if got := res.Header().Get("Content-Encoding"); got != want || res.Header().Get("Vary") != "Accept-Encoding" {
			t.Errorf("%q: encoding is %q, want %q", accepted, got, want)
			continue
		}
		body := res.Body.Bytes()
		if want == "zstd" {
			if res.Header().Get("Content-Length") != "" || res.Header().Get("Accept-Ranges") != "" {
				t.Errorf("header %v", res.Header())
			}
			d, err := zstd.NewReader(nil)
			if err != nil {
				t.Fatal(err)
			}
			if body, err = d.DecodeAll(body, nil); err != nil {
				t.Fatal(err)
			}
			d.Close()
		}
		if !bytes.Equal(body, o.NAR) {
			t.Errorf("%q: body has %d bytes, want %d", accepted, len(body), len(o.NAR))
		}
	}
}

// TestServeDamaged wants contents that are not as promised to look cut off.
func TestServeDamaged(t *testing.T) {
	o := bigObject()
	for _, place := range []int{200, len(o.NAR) / 2, len(o.NAR) - 1} {
		store := newLiveStore(o)
		s := substitute.NewStoreServer(store, substitute.StoreOptions{Zstd: true}, substitute.ServerOptions{})
		target := narURL(t, s, o)
		store.Damage(o.Info.Path, place)
		server := httptest.NewServer(s)
		for _, coding := range []string{"identity", "zstd"} {
			r, err := http.NewRequest("GET", server.URL+target, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Accept-Encoding", coding)
			res, err := http.DefaultClient.Do(r)
			if err != nil {
				continue
			}
			if _, err := io.Copy(io.Discard, res.Body); res.StatusCode == http.StatusOK && err == nil {
				t.Errorf("damaged at byte %d, %s: it looks complete", place, coding)
			}
			res.Body.Close()
		}
		server.Close()
	}
}

// A markedStore says that its paths are in the state of a mark.
type markedStore struct {
	*liveStore
	mark nar.Mark
}

func (s *markedStore) WriteMarkedNAR(ctx context.Context, w io.Writer, p nix.StorePath) (nar.Mark, error) {
	return s.mark, s.WriteNAR(ctx, w, p)
}

// TestServeHashedBefore has a NAR that was hashed when it was sent hashed again only when
// its path has changed.
func TestServeHashedBefore(t *testing.T) {
	o := bigObject()
	const complete, broken = http.StatusOK, -1
	for _, test := range []struct {
		name          string
		first, second bool // whether the path has just been changed at that request
		damage        bool
		want          [2]int // of the second request, and of one more
	}{
		{name: "unchanged", want: [2]int{complete, complete}},
		{name: "unchanged, as far as can be told", damage: true, want: [2]int{complete, complete}},
		{name: "changed", second: true, want: [2]int{broken, complete}},
		{name: "changed and damaged", second: true, damage: true, want: [2]int{broken, broken}},
		{name: "too fresh", first: true, second: true, damage: true, want: [2]int{broken, broken}},
	} {
		t.Run(test.name, func(t *testing.T) {
			marks := map[bool]nar.Mark{true: freshMark(t)}
			store := &markedStore{newLiveStore(o), marks[test.first]}
			s := substitute.NewStoreServer(store, substitute.StoreOptions{Zstd: true}, substitute.ServerOptions{})
			target := narURL(t, s, o)
			if res := do(s, "GET", target); res.Code != complete {
				t.Fatalf("first request: %d", res.Code)
			}
			store.mark = marks[test.second]
			if test.damage {
				store.Damage(o.Info.Path, len(o.NAR)/2)
			}
			for i, coding := range []string{"identity", "zstd"} {
				if res := do(s, "GET", target, "Accept-Encoding", coding); res.Code != test.want[i] {
					t.Errorf("request %d: %d, want %d", i+2, res.Code, test.want[i])
				}
			}
		})
	}
}

// freshMark is that of a file just written.
func freshMark(t *testing.T) nar.Mark {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	mark, err := nar.DumpMarkedAt(t.Context(), io.Discard, d, "file")
	if err != nil {
		t.Fatal(err)
	}
	return mark
}

func TestServeListing(t *testing.T) {
	o := nixtest.Source("tree", nixtest.Node{Entries: map[string]nixtest.Node{
		"bin":   {Entries: map[string]nixtest.Node{"run": {Content: "#!/bin/sh\n", Executable: true}, "sub": {Entries: map[string]nixtest.Node{}}}},
		"empty": {Content: ""},
		"link":  {Target: "bin/run"},
		"z":     {Content: "zzz"},
	}})
	s := substitute.NewStoreServer(newLiveStore(o), substitute.StoreOptions{}, substitute.ServerOptions{})
	res := do(s, "GET", "/"+o.Info.Path.HashPart()+".ls")
	type node struct {
		Type       string
		Size       *int
		Executable bool
		NarOffset  int
		Target     string
		Entries    map[string]*node
	}
	var list struct {
		Version int
		Root    *node
	}
	if err := json.Unmarshal(res.Body.Bytes(), &list); err != nil {
		t.Fatalf("%v: %s", err, res.Body)
	}
	contents := func(n *node) string { return string(o.NAR[n.NarOffset : n.NarOffset+*n.Size]) }
	top := list.Root.Entries
	if list.Version != 1 || len(top) != 4 || len(top["bin"].Entries) != 2 || top["link"].Target != "bin/run" || *top["empty"].Size != 0 {
		t.Errorf("listing is %s", res.Body)
	}
	run := top["bin"].Entries["run"]
	if contents(run) != "#!/bin/sh\n" || !run.Executable || contents(top["z"]) != "zzz" || top["z"].Executable {
		t.Errorf("listing is %s", res.Body)
	}
}

func testKey(t *testing.T, name string) nix.SecretKey {
	t.Helper()
	seed := strings.Repeat(name, ed25519.SeedSize)[:ed25519.SeedSize]
	return nix.SecretKey{Name: name, Key: ed25519.NewKeyFromSeed([]byte(seed))}
}

func TestSigner(t *testing.T) {
	ours, trusted, foreign := testKey(t, "ours"), testKey(t, "trusted"), testKey(t, "foreign")
	output := func() *nix.PathInfo {
		info := *nixtest.Output("seed", "output", func(string) nixtest.Node { return nixtest.Node{Content: "x"} }).Info
		return &info
	}
	signed := func(key nix.SecretKey) *nix.PathInfo {
		info := output()
		sig, err := key.Sign(info)
		if err != nil {
			t.Fatal(err)
		}
		info.Signatures = []string{sig}
		return info
	}
	built := output()
	built.Ultimate = true
	source := nixtest.Source("source", nixtest.Node{Content: "x"}).Info
	lying := output()
	lying.CA = source.CA
	cases := []struct {
		name string
		info *nix.PathInfo
		all  bool
		want bool
	}{
		{"from somewhere", output(), false, false},
		{"built here", built, false, true},
		{"content-addressed", source, false, true},
		{"a wrong address", lying, false, false},
		{"an address that only contents can confirm", nixtest.Text("text", "x").Info, false, false},
		{"signed by a trusted key", signed(trusted), false, true},
		{"signed by another key", signed(foreign), false, false},
		{"all", signed(foreign), true, true},
		{"signed by us before", signed(ours), true, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			before := len(c.info.Signatures)
			s := substitute.Signer{Keys: []nix.SecretKey{ours}, All: c.all, Trusted: nix.TrustedKeys{"trusted": trusted.Public()}}
			sigs, err := s.Sign(c.info)
			if err != nil {
				t.Fatal(err)
			}
			info := *c.info
			info.CA, info.Signatures = "", sigs
			if got := (nix.TrustedKeys{"ours": ours.Public()}).Trusts(&info); got != c.want {
				t.Errorf("signed: %v, want %v", got, c.want)
			}
			if len(c.info.Signatures) != before {
				t.Error("the info has changed")
			}
			ownSigs := 0
			for _, sig := range sigs {
				if strings.HasPrefix(sig, "ours:") {
					ownSigs++
				}
			}
			if ownSigs > 1 {
				t.Errorf("signed twice: %v", sigs)
			}
		})
	}
}

func TestServeLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := bigObject()
		store := newLiveStore(o)
		s := substitute.NewStoreServer(store, substitute.StoreOptions{}, substitute.ServerOptions{Transfers: 2, Requests: 4, Patience: time.Minute})
		target := narURL(t, s, o)
		store.block = make(chan struct{})
		var clients sync.WaitGroup
		codes := make(chan int, 5)
		for range 4 {
			clients.Go(func() { codes <- do(s, "GET", target).Code })
		}
		synctest.Wait()
		if res := do(s, "GET", "/nix-cache-info"); res.Code != http.StatusServiceUnavailable || res.Header().Get("Retry-After") == "" {
			t.Errorf("request beyond the limit: %d", res.Code)
		}
		time.Sleep(time.Minute) // the patience of two
		close(store.block)
		clients.Wait()
		close(codes)
		count := map[int]int{}
		for code := range codes {
			count[code]++
		}
		if d := cmp.Diff(map[int]int{http.StatusOK: 2, http.StatusServiceUnavailable: 2}, count); d != "" {
			t.Errorf("codes: %s", d)
		}
	})
}

// TestServeStalled wants a client that takes nothing to be given up.
func TestServeStalled(t *testing.T) {
	o := nixtest.Source("huge", nixtest.Node{Content: strings.Repeat("0123456789abcdef", 4<<20)})
	store := newLiveStore(o)
	s := substitute.NewStoreServer(store, substitute.StoreOptions{}, substitute.ServerOptions{Stall: 50 * time.Millisecond})
	server := httptest.NewServer(s)
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", narURL(t, s, o))
	one := make([]byte, 1)
	if _, err := conn.Read(one); err != nil {
		t.Fatal(err)
	}
	for store.holds.Load() != 0 { // until the request has ended
		time.Sleep(time.Millisecond)
	}
	if n, err := io.Copy(io.Discard, conn); err == nil && n > int64(len(o.NAR)) {
		t.Errorf("a stalled client got %d bytes", n)
	}
}

func TestServeGraceful(t *testing.T) {
	o := bigObject()
	store := newLiveStore(o)
	s := substitute.NewStoreServer(store, substitute.StoreOptions{}, substitute.ServerOptions{})
	target := narURL(t, s, o)
	store.block = make(chan struct{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l, nil, time.Minute) }()
	body := make(chan int, 1)
	go func() {
		res, err := http.Get("http://" + l.Addr().String() + target)
		if err != nil {
			t.Error(err)
			body <- 0
			return
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		body <- len(b)
	}()
	for store.holds.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	stop()
	for err = nil; err == nil; { // until nobody listens
		var conn net.Conn
		if conn, err = net.Dial("tcp", l.Addr().String()); err == nil {
			conn.Close()
		}
	}
	close(store.block)
	if n := <-body; n != len(o.NAR) {
		t.Errorf("a request under way got %d bytes, want %d", n, len(o.NAR))
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestServeDir(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"nix-cache-info": "StoreDir: /nix/store\n",
		"s66mzxpvicwk07gjbjfw9izjfa797vsw.narinfo":                        goodNARInfo,
		"nar/1nhgq6wcggx0plpy4991h3ginj6hipsdslv4fd4zml1n707j26yq.nar.xz": "0123456789",
		".copy-closure-1": "half",
		"secret":          "x",
	} {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	s, err := substitute.NewDirServer(substitute.Dir(root), substitute.ServerOptions{Listing: true})
	if err != nil {
		t.Fatal(err)
	}
	if res := do(s, "GET", "/s66mzxpvicwk07gjbjfw9izjfa797vsw.narinfo"); res.Body.String() != goodNARInfo || res.Header().Get("Content-Type") != "text/x-nix-narinfo" {
		t.Errorf("narinfo: %d %v", res.Code, res.Header())
	}
	res := do(s, "GET", "/nar/1nhgq6wcggx0plpy4991h3ginj6hipsdslv4fd4zml1n707j26yq.nar.xz", "Range", "bytes=3-")
	if res.Code != http.StatusPartialContent || res.Body.String() != "3456789" {
		t.Errorf("part of a NAR: %d %s", res.Code, res.Body)
	}
	for _, target := range []string{"/nar", "/nar/", "/.copy-closure-1", "/nix-cache-info/x", "/x.narinfo", "/nar/..%2fsecret", "/" + strings.Repeat("a", 500)} {
		if res := do(s, "GET", target); res.Code != http.StatusNotFound {
			t.Errorf("%s: %d", target, res.Code)
		}
	}
	if res := do(s, "GET", "/?q=HELLO"); !strings.Contains(res.Body.String(), "hello-2.12.1") {
		t.Errorf("page: %s", res.Body)
	}
	if _, err := substitute.NewDirServer(substitute.Dir(t.TempDir()), substitute.ServerOptions{}); err == nil {
		t.Error("an empty directory is served")
	}
}

// TestServeDirStaysInside puts into a cache what a writer of it could: links to files
// elsewhere, and what blocks whoever opens it.
func TestServeDirStaysInside(t *testing.T) {
	top := t.TempDir()
	root := filepath.Join(top, "cache")
	for name, text := range map[string]string{"cache/nix-cache-info": "StoreDir: /nix/store\n", "cache/nar/a.nar": "inside", "private/key": "outside"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(top, name)), 0o755), os.WriteFile(filepath.Join(top, name), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"key": "../private/key", "absolute": filepath.Join(top, "private/key"), "nar/dir": "../../private", "nar/up": "../..",
		"hop": "nar/dir/key", "b.narinfo": "../private/key", "device": "/dev/zero", "loop": "loop",
		"good": "nar/a.nar", "nar/here": "..",
	} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"fifo", "c.narinfo"} {
		if err := syscall.Mkfifo(filepath.Join(root, name), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	socket, err := net.Listen("unix", filepath.Join(root, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	s, err := substitute.NewDirServer(substitute.Dir(root), substitute.ServerOptions{Listing: true})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{
		"key": 404, "absolute": 404, "nar/dir/key": 404, "nar/up/private/key": 404, "hop": 404, "b.narinfo": 404,
		"device": 404, "loop": 404, "fifo": 404, "c.narinfo": 404, "socket": 404, "nar": 404, "nar/a.nar/x": 404,
		"": 200, "good": 200, "nar/a.nar": 200, "nar/here/nar/a.nar": 200,
	} {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest("GET", "/"+name, nil))
		if w.Code != want || strings.Contains(w.Body.String(), "outside") {
			t.Errorf("%s: status %d, %q; want %d", name, w.Code, w.Body, want)
		}
	}
}

func TestAccessLog(t *testing.T) {
	var b bytes.Buffer
	o := nixtest.Source("a", nixtest.Node{Content: "a"})
	s := substitute.NewStoreServer(newLiveStore(o), substitute.StoreOptions{}, substitute.ServerOptions{AccessLog: slog.New(slog.NewTextHandler(&b, nil))})
	do(s, "GET", "/nix-cache-info")
	do(s, "GET", "/%1b[31m%0aevil", "User-Agent", "\x1b[2J")
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "status=200") || !strings.Contains(lines[1], "status=404") || strings.Contains(b.String(), "\x1b") {
		t.Errorf("log: %q", lines)
	}
}

// FuzzServe has any request be answered, whatever it asks for.
func FuzzServe(f *testing.F) {
	o := nixtest.Source("a", nixtest.Node{Content: "a"})
	root := f.TempDir()
	if err := os.WriteFile(filepath.Join(root, "nix-cache-info"), []byte("StoreDir: /nix/store\n"), 0o644); err != nil {
		f.Fatal(err)
	}
	live := substitute.NewStoreServer(newLiveStore(o), substitute.StoreOptions{Zstd: true}, substitute.ServerOptions{Listing: true})
	dir, err := substitute.NewDirServer(substitute.Dir(root), substitute.ServerOptions{Listing: true})
	if err != nil {
		f.Fatal(err)
	}
	part, hash := o.Info.Path.HashPart(), o.Info.NARHash.Nix32()
	f.Add("/"+part+".narinfo", "", "", "")
	f.Add("/"+part+".ls", "", "bytes=0-1", "zstd")
	f.Add("/nar/"+part+"-"+hash+".nar", "", "bytes=-5", "zstd;q=0.1")
	f.Add("/nar/"+hash+".nar", "hash="+part, "bytes=1-2", "")
	f.Add("/", "q=a&page=2", "", "")
	f.Add("/../nix-cache-info", "", "", "")
	f.Fuzz(func(t *testing.T, path, query, span, coding string) {
		for _, s := range []http.Handler{live, dir} {
			r := httptest.NewRequest("GET", "/", nil)
			r.URL = &url.URL{Path: path, RawQuery: query}
			r.Header.Set("Range", span)
			r.Header.Set("Accept-Encoding", coding)
			switch res := record(s, r); res.Code {
			case 200, 206, 404, 416:
			default:
				t.Errorf("%d %s", res.Code, res.Body)
			}
		}
	})
}

// BenchmarkNARInfo has one client ask for narinfos.
func BenchmarkNARInfo(b *testing.B) {
	c := nixtest.Random(1, 100)
	s := substitute.NewStoreServer(newLiveStore(c...), substitute.StoreOptions{}, substitute.ServerOptions{})
	server := httptest.NewServer(s)
	defer server.Close()
	for i := 0; b.Loop(); i++ {
		res, err := http.Get(server.URL + "/" + substitute.NARInfoName(c[i%len(c)].Info.Path))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
			b.Fatal(res.StatusCode, err)
		}
		res.Body.Close()
	}
}

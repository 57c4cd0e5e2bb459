package remote_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/remote"
)

// A pipeHost starts servers of a store in memory, as a host would.
type pipeHost struct {
	store   *nixtest.Store
	options remote.ServerOptions
	before  string                                                  // printed ahead of the protocol
	fault   func(io.ReadWriteCloser) io.ReadWriteCloser             // on the client's side
	serve   func(ctx context.Context, far io.ReadWriteCloser) error // instead of our server

	mu       sync.Mutex
	commands []string
}

// A served session's Close tells how its server ended, as an SSH session does.
type servedSession struct {
	io.ReadWriteCloser
	ended <-chan error
	once  sync.Once
	err   error
}

func (s *servedSession) Close() error {
	s.once.Do(func() {
		s.ReadWriteCloser.Close()
		s.err = <-s.ended
	})
	return s.err
}

func (h *pipeHost) Start(ctx context.Context, command string) (io.ReadWriteCloser, error) {
	h.mu.Lock()
	h.commands = append(h.commands, command)
	h.mu.Unlock()
	near, far := nixtest.Pipe()
	ended := make(chan error, 1)
	go func() {
		io.WriteString(far, h.before)
		if h.serve != nil {
			ended <- h.serve(ctx, far)
			far.Close()
			return
		}
		ended <- remote.Serve(ctx, far, serverBackend{h.store}, h.options)
	}()
	if h.fault != nil {
		near = h.fault(near)
	}
	return &servedSession{ReadWriteCloser: near, ended: ended}, nil
}

func openStore(t *testing.T, h *pipeHost) *remote.Store {
	t.Helper()
	s, err := remote.Open(t.Context(), h, remote.FarEnd{Access: remote.Write}, remote.Options{StoreDir: nixtest.Dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// A farStore is a host as the conformance suite wants a store: with a session for
// each question, as a session ends with its first error.
type farStore struct {
	t *testing.T
	h *pipeHost
}

func (s farStore) ValidPaths(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error) {
	return openStore(s.t, s.h).ValidPaths(ctx, paths, false, false)
}

func (s farStore) PathInfos(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error) {
	return openStore(s.t, s.h).PathInfos(ctx, paths)
}

func (s farStore) Closure(ctx context.Context, roots []nix.StorePath) ([]*nix.PathInfo, error) {
	far := openStore(s.t, s.h)
	paths, err := far.ClosurePaths(ctx, roots, false)
	if err != nil {
		return nil, err
	}
	return far.PathInfos(ctx, paths)
}

func (s farStore) WriteNAR(ctx context.Context, w io.Writer, p nix.StorePath) error {
	far := openStore(s.t, s.h)
	infos, err := far.PathInfos(ctx, []nix.StorePath{p})
	if err != nil {
		return err
	}
	if len(infos) == 0 {
		return nix.ErrNotValid
	}
	lane, err := far.OpenLane(ctx)
	if err != nil {
		return err
	}
	if err := lane.Request(ctx, infos[0]); err != nil {
		return err
	}
	d, err := lane.Next(ctx)
	if err != nil {
		return err
	}
	defer d.Close()
	_, err = d.WriteTo(w)
	return err
}

func (s farStore) Import(ctx context.Context) (nixtest.Importer, error) {
	lane, err := openStore(s.t, s.h).OpenLane(ctx)
	return &farImporter{lane: lane}, err
}

type farImporter struct {
	lane    *remote.Lane
	pending sync.WaitGroup
}

func (im *farImporter) Add(ctx context.Context, info *nix.PathInfo, nar io.Reader, done func(error)) error {
	im.pending.Add(1)
	return im.lane.Add(ctx, info, wholeNAR{nar, info.NARSize}, func(err error) {
		done(err)
		im.pending.Done()
	})
}

// A wholeNAR reads no more than the announced size, as an importer must.
type wholeNAR struct {
	r    io.Reader
	size int64
}

func (n wholeNAR) WriteTo(w io.Writer) (int64, error) {
	written, err := io.CopyN(w, n.r, n.size)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return written, err
}

func (im *farImporter) Flush(ctx context.Context) error {
	err := im.lane.Flush()
	im.pending.Wait()
	return err
}

func (im *farImporter) Close() error { return im.Flush(context.Background()) }

func TestFarStore(t *testing.T) {
	nixtest.TestStore(t, func(t *testing.T, check func(*nix.PathInfo) error) nixtest.StoreUnderTest {
		h := &pipeHost{store: nixtest.NewStore(), options: remote.ServerOptions{Write: true, Check: check}}
		return farStore{t, h}
	})
}

func TestGreeting(t *testing.T) {
	c := nixtest.Chain(2)
	cases := []struct {
		name, before string
		program      string
		forced       bool
		err          string
	}{
		{name: "forced command", forced: true},
		{name: "start script", before: "@copy-closure-far-end /usr/bin/nix-store\n", program: "/usr/bin/nix-store"},
		{name: "noise and script", before: "Welcome!\nhi @copy-closure-far-end nix-store\n", program: "nix-store"},
		{name: "noise without a line end", before: "last login: never ", forced: true},
		{name: "endless noise", before: strings.Repeat("garbage\n", 20000), err: `it printed "garbage`},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			s := openStore(t, &pipeHost{store: nixtest.NewStore(c...), before: test.before})
			valid, err := s.ValidPaths(t.Context(), c.Paths(), false, false)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("error %v, want one with %q", err, test.err)
				}
				return
			}
			if err != nil || len(valid) != len(c) {
				t.Fatalf("ValidPaths = %v, %v", valid, err)
			}
			if s.Program() != test.program || s.Forced() != test.forced {
				t.Errorf("program %q, forced %v; want %q, %v", s.Program(), s.Forced(), test.program, test.forced)
			}
		})
	}
}

// TestFarLines wants an error of several lines in full, up to a screen of them.
func TestFarLines(t *testing.T) {
	few := "error: no\n" + strings.Repeat("       … while\n", 19)
	many := "error: no\n" + strings.Repeat("more\n", 1<<16)
	for text, want := range map[string]string{
		few:                             strings.TrimSpace(few),
		many:                            strings.TrimSpace(many[:10+19*5]) + "\n… (65517 more lines)",
		strings.Repeat("x", 1<<20):      strings.Repeat("x", 16<<10) + "…",
		"\n\nerror: no\n\n  really\n\n": "error: no\n\n  really",
	} {
		s := openStore(t, &pipeHost{serve: func(context.Context, io.ReadWriteCloser) error { return errors.New(text) }})
		_, err := s.ValidPaths(t.Context(), nil, false, false)
		var far *remote.FarError
		if !errors.As(err, &far) || far.Text != want {
			t.Errorf("%.40q: error %.200q, want %.200q", text, err, want)
		}
	}
}

// TestFarWords checks what becomes of the last words of a far end.
func TestFarWords(t *testing.T) {
	cases := []struct {
		name, text string
		is         error
	}{
		{"signature", "error: cannot add path '/nix/store/x' because it lacks a valid signature", nix.ErrNotTrusted},
		{"disk", "error: writing to file: \x1b[31;1mNo space left on device\x1b[0m", nix.ErrNoSpace},
		{"hash", "error: hash mismatch importing path", nix.ErrDamaged},
		{"other", "sudo: a password is required", nil},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			s := openStore(t, &pipeHost{serve: func(context.Context, io.ReadWriteCloser) error { return errors.New(test.text) }})
			_, err := s.ValidPaths(t.Context(), nil, false, false)
			if err == nil || !strings.Contains(err.Error(), test.text) {
				t.Fatalf("error %q, want the far end's words", err)
			}
			for _, reason := range []error{nix.ErrNotTrusted, nix.ErrNoSpace, nix.ErrDamaged, nix.ErrNotValid} {
				if errors.Is(err, reason) != (reason == test.is) {
					t.Errorf("errors.Is(%v, %v) = %v", err, reason, errors.Is(err, reason))
				}
			}
		})
	}
}

func TestOldServer(t *testing.T) {
	s := openStore(t, &pipeHost{serve: func(_ context.Context, far io.ReadWriteCloser) error {
		_, err := far.Write([]byte("\xcb\xee\x52\x54\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x00\x00"))
		io.Copy(io.Discard, far)
		return err
	}})
	if err := s.Greet(t.Context()); err == nil || !strings.Contains(err.Error(), "version 2.2") {
		t.Errorf("error %v, want one that names the version", err)
	}
}

// An oldGreeting makes a server look like one of version 2.4, which takes paths by
// ImportPaths only.
type oldGreeting struct {
	io.ReadWriteCloser
	offset int
}

func (g *oldGreeting) Read(p []byte) (int, error) {
	const minor = 8 // where the version begins
	n, err := g.ReadWriteCloser.Read(p)
	if at := minor - g.offset; at >= 0 && at < n {
		p[at] = 4
	}
	g.offset += n
	return n, err
}

func TestImportToOldServer(t *testing.T) {
	c := nixtest.Chain(5)
	h := &pipeHost{store: nixtest.NewStore(), options: serverWriter}
	h.fault = func(rw io.ReadWriteCloser) io.ReadWriteCloser { return &oldGreeting{ReadWriteCloser: rw} }
	s := openStore(t, h)
	im := new(farImporter)
	var err error
	if im.lane, err = s.OpenLane(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, o := range c {
		if err := im.Add(t.Context(), o.Info, bytes.NewReader(o.NAR), func(err error) {
			if err != nil {
				t.Errorf("add %s: %v", o.Info.Path, err)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := im.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := h.store.All(); len(got) != len(c) {
		t.Errorf("%d paths arrived, want %d", len(got), len(c))
	}
	if program := s.Describe(); !strings.Contains(program, "2.4") {
		t.Errorf("server described as %s", program)
	}
}

// TestHostileAnswers feeds answers that the protocol does not allow.
func TestHostileAnswers(t *testing.T) {
	p := nixtest.Chain(1).Top()
	const greeting = "\xcb\xee\x52\x54\x00\x00\x00\x00\x07\x02\x00\x00\x00\x00\x00\x00"
	for name, answer := range map[string]string{
		"huge list":    "\xff\xff\xff\xff\xff\xff\xff\x7f",
		"huge string":  "\x01\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\x7f",
		"no path":      "\x01\x00\x00\x00\x00\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00/etc/foo",
		"unasked path": "\x01\x00\x00\x00\x00\x00\x00\x00" + wireString(strings.Replace(p.String(), p.HashPart(), strings.Repeat("0", 32), 1)),
		"nothing":      "",
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, &pipeHost{serve: func(_ context.Context, far io.ReadWriteCloser) error {
				_, err := io.WriteString(far, greeting+answer)
				return err
			}})
			if valid, err := s.ValidPaths(t.Context(), []nix.StorePath{p}, false, false); err == nil {
				t.Errorf("answer accepted as %v", valid)
			}
		})
	}
}

func wireString(s string) string {
	length := make([]byte, 8)
	length[0] = byte(len(s))
	return string(length) + s + strings.Repeat("\x00", -len(s)&7)
}

// TestPipelining sends a whole closure before the first acknowledgement is read.
func TestPipelining(t *testing.T) {
	c := nixtest.Random(1, 200)
	h := &pipeHost{store: nixtest.NewStore(), options: serverWriter}
	s := openStore(t, h)
	lane, err := s.OpenLane(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	results := make(chan error, len(c))
	for _, o := range c {
		if err := lane.Add(t.Context(), o.Info, bytes.NewReader(o.NAR), func(err error) { results <- err }); err != nil {
			t.Fatal(err)
		}
	}
	if err := lane.Flush(); err != nil {
		t.Fatal(err)
	}
	for range c {
		if err := <-results; err != nil {
			t.Fatal(err)
		}
	}
	if got := h.store.All(); len(got) != len(c) {
		t.Errorf("%d paths arrived, want %d", len(got), len(c))
	}
	if s.RoundTrips() != 0 {
		t.Errorf("%d round trips while sending", s.RoundTrips())
	}
}

// TestFailedPath checks that the path which failed is named, and that those behind
// it in the session are only called unconfirmed.
func TestFailedPath(t *testing.T) {
	c := nixtest.Chain(5)
	h := &pipeHost{store: nixtest.NewStore(), options: serverWriter}
	s := openStore(t, h)
	lane, err := s.OpenLane(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	errs := make([]error, len(c))
	var all sync.WaitGroup
	for i, o := range c {
		content := slices.Clone(o.NAR)
		if i == 2 {
			content[len(content)/2] ^= 1
		}
		all.Add(1)
		lane.Add(t.Context(), o.Info, bytes.NewReader(content), func(err error) { errs[i] = err; all.Done() })
	}
	lane.Flush()
	all.Wait()
	if errs[0] != nil || errs[1] != nil {
		t.Errorf("paths before the damaged one: %v, %v", errs[0], errs[1])
	}
	if errs[2] == nil || !strings.Contains(errs[2].Error(), "send "+c[2].Info.Path.String()) {
		t.Errorf("damaged path: %v, want an error that names it", errs[2])
	}
	for _, err := range errs[3:] {
		var c interface{ Consequence() bool }
		if !errors.As(err, &c) {
			t.Errorf("path behind the damaged one: %v, want a consequence", err)
		}
	}
	if d := cmp.Diff(h.store.All(), c.Paths()[:2], comparePaths, cmp.Transformer("sort", sorted)); d != "" {
		t.Errorf("valid afterwards (-got +want):\n%s", d)
	}
}

func TestStartCommands(t *testing.T) {
	c := nixtest.Chain(1)
	h := &pipeHost{store: nixtest.NewStore(c...), before: "@copy-closure-far-end /opt/it's/nix-store\n"}
	s, err := remote.Open(t.Context(), h, remote.FarEnd{Access: remote.Read, Store: "/my store"}, remote.Options{StoreDir: nixtest.Dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Greet(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := s.OpenLane(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	want := `'/opt/it'\''s/nix-store' --serve --write --store '/my store'`
	if len(h.commands) != 2 || h.commands[1] != want {
		t.Errorf("commands %q, want the second to be %q", h.commands, want)
	}
	if !strings.HasSuffix(h.commands[0], "' '/my store'") {
		t.Errorf("first command %q does not pass the store on", h.commands[0])
	}
}

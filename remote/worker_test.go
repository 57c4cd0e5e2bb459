package remote_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/remote"
)

// A daemonHost opens sessions of our server of the worker protocol, on a store in
// memory.
type daemonHost struct {
	store   *nixtest.Store
	options remote.ServerOptions
	version uint64                                      // that both ends are made to believe in; 0: their own
	fault   func(io.ReadWriteCloser) io.ReadWriteCloser // on the client's side
}

func (h *daemonHost) open(ctx context.Context, further bool) (io.ReadWriteCloser, error) {
	near, far := nixtest.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- remote.ServeDaemon(ctx, far, serverBackend{h.store}, h.options) }()
	if h.version != 0 {
		near = &olderStream{ReadWriteCloser: near, version: h.version}
	}
	if h.fault != nil {
		near = h.fault(near)
	}
	return &servedSession{ReadWriteCloser: near, ended: ended}, nil
}

// An olderStream puts a version in place of those in both greetings, which are the
// second word of either direction.
type olderStream struct {
	io.ReadWriteCloser
	version       uint64
	read, written int64
}

func (s *olderStream) Read(p []byte) (int, error) {
	n, err := s.ReadWriteCloser.Read(p)
	s.replace(p[:n], s.read)
	s.read += int64(n)
	return n, err
}

func (s *olderStream) Write(p []byte) (int, error) {
	changed := bytes.Clone(p)
	s.replace(changed, s.written)
	n, err := s.ReadWriteCloser.Write(changed)
	s.written += int64(n)
	return n, err
}

func (s *olderStream) replace(p []byte, offset int64) {
	word := binary.LittleEndian.AppendUint64(nil, s.version)
	for i := range p {
		if at := offset + int64(i); 8 <= at && at < 16 {
			p[i] = word[at-8]
		}
	}
}

// A daemonStore is a daemon as the conformance suite wants a store.
type daemonStore struct{ d *remote.Daemon }

func (s daemonStore) ValidPaths(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error) {
	return s.d.ValidPaths(ctx, paths, false, false)
}

func (s daemonStore) PathInfos(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error) {
	return s.d.PathInfos(ctx, paths)
}

// Closure walks, as the closure package does where a store knows no closures.
func (s daemonStore) Closure(ctx context.Context, roots []nix.StorePath) ([]*nix.PathInfo, error) {
	var all []*nix.PathInfo
	seen := make(map[nix.StorePath]bool)
	for level := roots; len(level) > 0; {
		infos, err := s.d.PathInfos(ctx, level)
		if err == nil && len(infos) < len(level) {
			err = fmt.Errorf("%s: %w", level[0], nix.ErrNotValid)
		}
		if err != nil {
			return nil, err
		}
		level = nil
		for _, info := range infos {
			seen[info.Path] = true
			all = append(all, info)
			for _, ref := range info.References {
				if !seen[ref] {
					seen[ref] = true
					level = append(level, ref)
				}
			}
		}
	}
	return all, nil
}

func (s daemonStore) WriteNAR(ctx context.Context, w io.Writer, p nix.StorePath) error {
	lane, err := s.d.OpenLane(ctx)
	if err != nil {
		return err
	}
	infos, err := s.d.PathInfos(ctx, []nix.StorePath{p})
	if err != nil {
		return err
	}
	if len(infos) == 0 {
		return nix.ErrNotValid
	}
	if err := lane.Request(ctx, infos[0]); err != nil {
		return err
	}
	delivery, err := lane.Next(ctx)
	if err != nil {
		return err
	}
	defer delivery.Close()
	_, err = delivery.WriteTo(w)
	return err
}

func (s daemonStore) Import(ctx context.Context) (nixtest.Importer, error) {
	lane, err := s.d.OpenLane(ctx)
	return &farImporter{lane: lane}, err
}

// An oldDaemonStore takes each path in a session of its own: before 1.23 a NAR that
// breaks off ends its session.
type oldDaemonStore struct {
	daemonStore
	open func() *remote.Daemon
}

func (s oldDaemonStore) Import(ctx context.Context) (nixtest.Importer, error) {
	return daemonStore{s.open()}.Import(ctx)
}

// daemonVersions are those at which something changes, and our own.
var daemonVersions = []uint64{0x115, 0x117, 0x11a, 0x11b, 0x121, 0x123, 0x125, 0}

func TestDaemonStore(t *testing.T) {
	for _, version := range daemonVersions {
		t.Run(fmt.Sprintf("%#x", version), func(t *testing.T) {
			nixtest.TestStore(t, func(t *testing.T, check func(*nix.PathInfo) error) nixtest.StoreUnderTest {
				h := &daemonHost{
					store:   nixtest.NewStore(),
					options: remote.ServerOptions{Write: true, Check: check},
					version: version,
				}
				open := func() *remote.Daemon { return openDaemon(t, h.open) }
				if 0 < version && version < 0x117 {
					return oldDaemonStore{daemonStore{open()}, open}
				}
				return daemonStore{open()}
			})
		})
	}
}

// TestDaemonRefusesNAR asks for the NAR of a path that is not valid, and for another
// behind it.
func TestDaemonRefusesNAR(t *testing.T) {
	there, absent := nixtest.Chain(1), nixtest.Diamond()[0]
	d := openDaemon(t, (&daemonHost{store: nixtest.NewStore(there...)}).open)
	lane, err := d.OpenLane(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := lane.Request(t.Context(), absent.Info); err != nil {
		t.Fatal(err)
	}
	if _, err := lane.Next(t.Context()); !errors.Is(err, nix.ErrNotValid) {
		t.Errorf("Next: %v", err)
	}
	takeAll(t, lane, there)
}

// TestDaemonOfNixStore is the suite with the real daemon.
func TestDaemonOfNixStore(t *testing.T) {
	nixtest.TestStore(t, func(t *testing.T, check func(*nix.PathInfo) error) nixtest.StoreUnderTest {
		if check != nil {
			t.Skip("a daemon that runs as its client trusts him")
		}
		return daemonStore{nixDaemon(t, nixRoot(t))}
	})
}

func TestDaemonTrust(t *testing.T) {
	refuse := func(*nix.PathInfo) error { return nix.ErrNotTrusted }
	for _, version := range daemonVersions {
		for _, test := range []struct {
			options remote.ServerOptions
			want    remote.Trust
		}{
			{remote.ServerOptions{Write: true}, remote.Trusted},
			{remote.ServerOptions{Write: true, Check: refuse, Trust: true}, remote.Trusted},
			{remote.ServerOptions{Write: true, Check: refuse}, remote.NotTrusted},
			{remote.ServerOptions{}, remote.NotTrusted},
		} {
			d := openDaemon(t, (&daemonHost{store: nixtest.NewStore(), options: test.options, version: version}).open)
			if got, err := d.Trust(t.Context()); got != test.want || err != nil {
				t.Errorf("version %#x, %+v: Trust = %v, %v; want %v", version, test.options, got, err, test.want)
			}
		}
	}
}

func TestDaemonHoldsAndOutputs(t *testing.T) {
	drv, out := nixtest.Derivation("fixed", nixtest.Node{Content: "x"})
	h := &daemonHost{store: nixtest.NewStore(drv, out), options: remote.ServerOptions{Write: true}}
	d := openDaemon(t, h.open)
	paths := nixtest.Chain(3).Paths()
	if valid, err := d.ValidPaths(t.Context(), paths, true, true); len(valid) > 0 || err != nil {
		t.Errorf("ValidPaths = %v, %v", valid, err)
	}
	if d := cmp.Diff(h.store.Held(), sorted(paths), comparePaths); d != "" {
		t.Errorf("held (-got +want):\n%s", d)
	}
	outputs, err := d.ValidOutputs(t.Context(), []nix.StorePath{drv.Info.Path})
	if err != nil || len(outputs) != 1 || outputs[0] != out.Info.Path {
		t.Errorf("ValidOutputs = %v, %v; want %s", outputs, err, out.Info.Path)
	}
}

// TestDaemonSigns adds signatures, one of them to a path that is not there.
func TestDaemonSigns(t *testing.T) {
	c := nixtest.Chain(3)
	h := &daemonHost{store: nixtest.NewStore(c[0], c[2]), options: serverWriter}
	d := openDaemon(t, h.open)
	infos := c.Infos()
	for _, info := range infos {
		info.Signatures = []string{nixtest.Signature("key-1")}
	}
	if err := d.AddSignatures(t.Context(), infos); !errors.Is(err, nix.ErrNotValid) || !strings.Contains(err.Error(), c[1].Info.Path.String()) {
		t.Errorf("AddSignatures: %v, want an error that names %s", err, c[1].Info.Path)
	}
	there, err := d.PathInfos(t.Context(), c.Paths())
	if err != nil || len(there) != 2 {
		t.Fatalf("PathInfos = %v, %v", there, err)
	}
	for _, info := range there {
		if len(info.Signatures) != 1 {
			t.Errorf("%s has the signatures %q", info.Path, info.Signatures)
		}
	}
}

// TestDaemonForesees asks a daemon without caches what they have.
func TestDaemonForesees(t *testing.T) {
	d := openDaemon(t, (&daemonHost{store: nixtest.NewStore()}).open)
	if found, err := d.Substitutable(t.Context(), nixtest.Chain(3).Paths()); len(found) > 0 || err != nil {
		t.Errorf("Substitutable = %v, %v", found, err)
	}
}

// TestDaemonSourceFails has a NAR that cannot be read: the path gets that reason, and
// the session goes on.
func TestDaemonSourceFails(t *testing.T) {
	h := &daemonHost{store: nixtest.NewStore(), options: serverWriter}
	d := openDaemon(t, h.open)
	lane, err := d.OpenLane(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("the disk is broken")
	big := nixtest.Output("big", "big", func(string) nixtest.Node { return nixtest.Node{Content: string(make([]byte, 1<<17))} })
	verdict := make(chan error, 1)
	err = lane.Add(t.Context(), big.Info, failingNAR{big.NAR[:1<<16], broken}, func(err error) { verdict <- err })
	if !errors.Is(err, broken) {
		t.Errorf("Add: %v", err)
	}
	if err := lane.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := <-verdict; !errors.Is(err, broken) {
		t.Errorf("verdict: %v", err)
	}
	if valid, err := d.ValidPaths(t.Context(), []nix.StorePath{big.Info.Path}, false, false); len(valid) > 0 || err != nil {
		t.Errorf("ValidPaths = %v, %v", valid, err)
	}
}

type failingNAR struct {
	start []byte
	err   error
}

func (n failingNAR) WriteTo(w io.Writer) (int64, error) {
	written, err := w.Write(n.start)
	if err == nil {
		err = n.err
	}
	return int64(written), err
}

// TestDaemonCut pushes and pulls over streams that end, and finds every end an error
// and no half-valid path.
func TestDaemonCut(t *testing.T) {
	objects := nixtest.Chain(2)
	for _, direction := range []struct {
		name string
		cut  func(io.ReadWriteCloser, int64) io.ReadWriteCloser
	}{{"reads", nixtest.CutReads}, {"writes", nixtest.CutWrites}} {
		t.Run(direction.name, func(t *testing.T) {
			for n := int64(0); ; n++ {
				h := &daemonHost{store: nixtest.NewStore(), options: serverWriter}
				h.fault = func(s io.ReadWriteCloser) io.ReadWriteCloser { return direction.cut(s, n) }
				err := copyThere(t, h, objects)
				if verifyErr := h.store.Verify(); verifyErr != nil {
					t.Fatalf("cut at byte %d: %v", n, verifyErr)
				}
				if err == nil {
					if len(h.store.All()) != len(objects) {
						t.Fatalf("cut at byte %d: no error, and %d paths are valid", n, len(h.store.All()))
					}
					return
				}
				if n > 1<<16 {
					t.Fatalf("it never succeeds: %v", err)
				}
			}
		})
	}
}

// copyThere adds objects and reads the last one back.
func copyThere(t *testing.T, h *daemonHost, objects nixtest.Closure) error {
	d, err := remote.OpenDaemon(t.Context(), h.open, remote.Options{StoreDir: nixtest.Dir})
	if err != nil {
		return err
	}
	defer d.Close()
	lane, err := d.OpenLane(t.Context())
	if err != nil {
		return err
	}
	im := &farImporter{lane: lane}
	verdicts := make(chan error, len(objects))
	for _, o := range objects {
		if err := im.Add(t.Context(), o.Info, bytes.NewReader(o.NAR), func(err error) { verdicts <- err }); err != nil {
			return err
		}
	}
	if err := im.Flush(t.Context()); err != nil {
		return err
	}
	for range objects {
		if err := <-verdicts; err != nil {
			return err
		}
	}
	var got bytes.Buffer
	last := objects[len(objects)-1]
	if err := (daemonStore{d}).WriteNAR(t.Context(), &got, last.Info.Path); err != nil {
		return err
	}
	if !bytes.Equal(got.Bytes(), last.NAR) {
		return errors.New("the NAR differs")
	}
	return nil
}

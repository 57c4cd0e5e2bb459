package remote_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/remote"
)

// A processStream is a program's standard input and output.
type processStream struct {
	io.Reader
	io.WriteCloser
	cmd  *exec.Cmd
	once sync.Once
	err  error
}

func (s *processStream) Close() error {
	s.once.Do(func() {
		s.WriteCloser.Close()
		s.err = s.cmd.Wait()
	})
	return s.err
}

// nixDaemon opens sessions of the real nix-daemon --stdio with a store at root.
func nixDaemon(t *testing.T, root string) *remote.Daemon {
	t.Helper()
	open := func(ctx context.Context, further bool) (io.ReadWriteCloser, error) {
		cmd := nixCommand(t, root, "nix-daemon", "--stdio", "--store", root)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		return &processStream{Reader: stdout, WriteCloser: stdin, cmd: cmd}, cmd.Start()
	}
	return openDaemon(t, open)
}

func openDaemon(t *testing.T, open func(context.Context, bool) (io.ReadWriteCloser, error)) *remote.Daemon {
	t.Helper()
	d, err := remote.OpenDaemon(t.Context(), open, remote.Options{StoreDir: nixtest.Dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// TestDaemonOfNix copies to a real daemon and back, everything pipelined.
func TestDaemonOfNix(t *testing.T) {
	d := nixDaemon(t, nixRoot(t))
	objects := clientObjects()
	absent := nixtest.Chain(1).Top()
	lane, err := d.OpenLane(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	im := &farImporter{lane: lane}
	for range 2 { // the second time all is valid already
		for _, o := range objects {
			err := im.Add(t.Context(), o.Info, bytes.NewReader(o.NAR), func(err error) {
				if err != nil {
					t.Error(err)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := im.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	asked := append(objects.Paths(), absent)
	valid, err := d.ValidPaths(t.Context(), asked, true, true)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(sorted(valid), sorted(objects.Paths()), comparePaths); d != "" {
		t.Errorf("valid (-got +want):\n%s", d)
	}
	infos, err := d.PathInfos(t.Context(), asked)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(infosByPath(infos), infosByPath(objects.Infos()), nixtest.CompareInfos); d != "" {
		t.Errorf("path infos (-got +want):\n%s", d)
	}
	takeAll(t, lane, objects)
	if trust, err := d.Trust(t.Context()); trust != remote.Trusted || err != nil {
		t.Errorf("Trust = %v, %v", trust, err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func infosByPath(infos []*nix.PathInfo) map[string]*nix.PathInfo {
	m := make(map[string]*nix.PathInfo)
	for _, info := range infos {
		m[info.Path.String()] = info
	}
	return m
}

// takeAll requests all NARs and takes them.
func takeAll(t *testing.T, lane *remote.Lane, objects nixtest.Closure) {
	t.Helper()
	for _, o := range objects {
		if err := lane.Request(t.Context(), o.Info); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range objects {
		delivery, err := lane.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if _, err := delivery.WriteTo(&got); err != nil || !bytes.Equal(got.Bytes(), o.NAR) {
			t.Errorf("%s: NAR differs (error %v)", o.Info.Path, err)
		}
		delivery.Close()
	}
}

// TestDaemonOfNixRefuses has a real daemon refuse paths, and go on.
func TestDaemonOfNixRefuses(t *testing.T) {
	d := nixDaemon(t, nixRoot(t))
	lane, err := d.OpenLane(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	good, chain := nixtest.Source("good", nixtest.Node{Content: "good"}), nixtest.Chain(2)
	bad := nixtest.Output("bad", "bad", func(string) nixtest.Node { return nixtest.Node{Content: strings.Repeat("bad", 1<<16)} })
	bad.NAR = bytes.Clone(bad.NAR)
	bad.NAR[1<<16] ^= 1
	for _, test := range []struct {
		object nixtest.Object
		want   error
	}{{bad, nix.ErrDamaged}, {chain[1], nix.ErrNotValid}, {good, nil}} {
		im := &farImporter{lane: lane}
		verdict := make(chan error, 1)
		if err := im.Add(t.Context(), test.object.Info, bytes.NewReader(test.object.NAR), func(err error) { verdict <- err }); err != nil {
			t.Fatal(err)
		}
		if err := im.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-verdict; !errors.Is(err, test.want) || err != nil && !strings.Contains(err.Error(), test.object.Info.Path.String()) {
			t.Errorf("%s: error is %v, want %v with the path", test.object.Info.Path, err, test.want)
		}
	}
}

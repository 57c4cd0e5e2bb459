package remote_test

import (
	"bufio"
	"context"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/remote"
)

// An earlyHost begins sessions as a shell would whose start script finds program.
type earlyHost struct {
	store   *nixtest.Store
	program string

	mu                    sync.Mutex
	early, become, others int // sessions: that wait for a line, that got it, all others
}

func (h *earlyHost) count(n *int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*n++
}

func (h *earlyHost) Start(ctx context.Context, command string) (io.ReadWriteCloser, error) {
	near, far := nixtest.Pipe()
	early := strings.Contains(command, "read -r go")
	if early {
		h.count(&h.early)
	} else {
		h.count(&h.others)
	}
	go func() {
		defer far.Close()
		if !early {
			io.WriteString(far, "@copy-closure-far-end "+h.program+"\n")
			remote.Serve(ctx, far, serverBackend{h.store}, remote.ServerOptions{})
			return
		}
		in := bufio.NewReaderSize(far, 16)
		if line, err := in.ReadString('\n'); line != "go\n" || err != nil {
			return
		}
		h.count(&h.become)
		remote.Serve(ctx, &begunStream{far, in}, serverBackend{h.store}, remote.ServerOptions{})
	}()
	return near, nil
}

// A begunStream is one of which a part was read ahead.
type begunStream struct {
	io.ReadWriteCloser
	in *bufio.Reader
}

func (s *begunStream) Read(p []byte) (int, error) { return s.in.Read(p) }

// TestEarlySessions asks for the infos of so many paths that it takes further sessions.
// Those are there already where the first one is Nix's.
func TestEarlySessions(t *testing.T) {
	c := nixtest.Chain(3500)
	for program, want := range map[string][3]int{
		"/usr/bin/nix-store":    {3, 3, 1},
		"/usr/bin/copy-closure": {3, 0, 4},
	} {
		t.Run(program, func(t *testing.T) {
			h := &earlyHost{store: nixtest.NewStore(c...), program: program}
			s, err := remote.Open(t.Context(), h, remote.FarEnd{}, remote.Options{StoreDir: nixtest.Dir, Spread: 4, Early: true})
			if err != nil {
				t.Fatal(err)
			}
			paths, err := s.ClosurePaths(t.Context(), c.Paths()[3499:], false)
			if err != nil {
				t.Fatal(err)
			}
			if infos, err := s.PathInfos(t.Context(), paths); err != nil || len(infos) != len(c) {
				t.Errorf("%d infos, %v", len(infos), err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			if got := [3]int{h.early, h.become, h.others}; got != want {
				t.Errorf("sessions begun early, used, and begun later: %v, want %v", got, want)
			}
		})
	}
}

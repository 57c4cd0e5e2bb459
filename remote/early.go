package remote

import (
	"context"
	"io"
	"sync"
)

// early are further sessions of nix-store that are begun before it is known whether they
// are needed. sshd takes in nothing for a command that it has not started yet, so each
// session takes two round trips to its first answer, and an answer that is long takes
// further ones in a single session. Here the first of the two passes while the first
// session is asked for the closure.
//
// What is begun is a shell that waits for a line of input; only then it becomes
// nix-store. Where the first session finds something else, nobody writes that line.
type early struct {
	begin func(ctx context.Context) (io.ReadWriteCloser, error)

	mu      sync.Mutex
	waiting []chan io.ReadWriteCloser // each gets one, nil where it failed
}

// earlyScript waits where nix-store is what the start script finds.
const earlyScript = `command -v copy-closure >/dev/null 2>&1 && exit 0
command -v nix-store >/dev/null 2>&1 && read -r go && exec nix-store `

// earlyCommand is that of an early session; empty where there can be none.
func (f FarEnd) earlyCommand() string {
	if f.Program != "" || f.Prefer {
		return ""
	}
	return f.shell(searchPath + earlyScript + f.Arguments("nix-store") + ` ${1:+--store "$1"}`)
}

// start begins n sessions and does not wait.
func (e *early) start(ctx context.Context, n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.begin == nil || e.waiting != nil {
		return
	}
	begin := e.begin // not read later: close clears it
	for range n {
		begun := make(chan io.ReadWriteCloser, 1)
		e.waiting = append(e.waiting, begun)
		go func() {
			stream, err := begin(ctx)
			if err != nil {
				stream = nil
			}
			begun <- stream
		}()
	}
}

// take returns a session that has become nix-store, or nil.
func (e *early) take() io.ReadWriteCloser {
	e.mu.Lock()
	if len(e.waiting) == 0 {
		e.mu.Unlock()
		return nil
	}
	begun := e.waiting[0]
	e.waiting = e.waiting[1:]
	e.mu.Unlock()
	stream := <-begun
	if stream == nil {
		return nil
	}
	if _, err := io.WriteString(stream, "go\n"); err != nil {
		stream.Close()
		return nil
	}
	return stream
}

// close ends those that were not taken, and begins no more.
func (e *early) close() {
	e.mu.Lock()
	waiting := e.waiting
	e.begin, e.waiting = nil, nil
	e.mu.Unlock()
	var ending sync.WaitGroup
	for _, begun := range waiting {
		ending.Go(func() {
			if stream := <-begun; stream != nil {
				stream.Close()
			}
		})
	}
	ending.Wait()
}

// takeEarly returns a session that was begun early, if the first turned out to be one of
// nix-store. Otherwise it ends them: a host allows only so many.
func (s *Store) takeEarly() io.ReadWriteCloser {
	if programName(s.first.prelude.program) != "nix-store" {
		go s.early.close()
		return nil
	}
	return s.early.take()
}

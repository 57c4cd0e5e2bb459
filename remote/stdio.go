package remote

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// A stdio is the stream to the client that started us.
type stdio struct{ in, out *os.File }

// StandardStreams are standard input and output as the stream of a server. Its Read
// ends when it is closed, and a client that goes away is an error from then on, not a
// signal that kills us.
func StandardStreams() (io.ReadWriteCloser, error) {
	signal.Ignore(syscall.SIGPIPE)
	widen(os.Stdin, os.Stdout)
	if err := syscall.SetNonblock(int(os.Stdin.Fd()), true); err != nil {
		return nil, fmt.Errorf("standard input: %w", err)
	}
	return &stdio{os.NewFile(os.Stdin.Fd(), "standard input"), os.Stdout}, nil
}

func (s *stdio) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s *stdio) Write(p []byte) (int, error) { return s.out.Write(p) }
func (s *stdio) Close() error                { return errors.Join(s.in.Close(), s.out.Close()) }

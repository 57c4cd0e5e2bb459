package transport

import (
	"bufio"
	"io"
	"log/slog"
	"strings"
	"sync"
)

const (
	stderrTail = 16 << 10 // bytes of stderr that an ExitError keeps
	stderrLine = 4 << 10  // bytes of a line; longer ones are handed on in pieces
)

// A stderrLog collects what a command says on its standard error: line by line to a
// callback and a log, the end of it for the error that may follow.
type stderrLog struct {
	line func(string) // may be nil
	log  *slog.Logger

	mu   sync.Mutex
	tail []byte
}

// collect reads r to its end.
func (l *stderrLog) collect(r io.Reader) {
	in := bufio.NewReaderSize(r, stderrLine)
	for {
		line, _, err := in.ReadLine()
		if err != nil {
			return
		}
		l.add(string(line))
	}
}

func (l *stderrLog) add(line string) {
	line = strings.TrimRight(line, " \t\r")
	l.mu.Lock()
	l.tail = append(append(l.tail, line...), '\n')
	if cut := len(l.tail) - stderrTail; cut > 0 {
		l.tail = append(l.tail[:0], l.tail[cut:]...)
	}
	l.mu.Unlock()
	l.log.Debug("stderr", "line", line)
	if l.line != nil {
		l.line(line)
	}
}

// text returns the last stderrTail bytes of all lines.
func (l *stderrLog) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.tail)
}

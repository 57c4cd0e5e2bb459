package transport

import (
	"bufio"
	"io"
	"log/slog"
	"strings"
	"sync"
	"unicode"
)

const (
	stderrTail = 8 << 10 // bytes of stderr that an ExitError keeps
	stderrLine = 4 << 10 // bytes of a line; longer ones are handed on in pieces
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
	line = strings.TrimRight(clean(line), " \t")
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
	return strings.ToValidUTF8(string(l.tail), "")
}

// clean removes from foreign text what would make a terminal do more than show it:
// escape sequences, control characters but tabs and line breaks, invisible marks
// that turn the direction of writing.
func clean(s string) string {
	var b strings.Builder
	runes := []rune(strings.ToValidUTF8(s, "\uFFFD"))
	for i := 0; i < len(runes); i++ {
		switch r := runes[i]; {
		case r == '\x1b' || r == '\u009b':
			i = skipEscape(runes, i)
		case r == '\t' || r == '\n' || unicode.IsGraphic(r):
			b.WriteRune(r)
		}
	}
	return b.String()
}

// skipEscape returns the index of the last rune of the escape sequence at i.
func skipEscape(s []rune, i int) int {
	if s[i] == '\x1b' {
		i++
	}
	if i >= len(s) {
		return i
	}
	switch s[i] {
	case '[', '\u009b': // CSI: parameters, then a final character
		for i++; i < len(s) && (s[i] < '@' || s[i] > '~'); i++ {
		}
	case ']', 'P', '_', '^', 'X': // a string, ended by BEL or ESC \
		for i++; i < len(s) && s[i] != '\a' && s[i] != '\n'; i++ {
			if s[i] == '\x1b' && i+1 < len(s) && s[i+1] == '\\' {
				return i + 1
			}
		}
	case '(', ')', '*', '+', '#', '%', ' ': // one more character
		i++
	}
	return i
}

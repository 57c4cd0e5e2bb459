package substitute

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/copy-closure/copy-closure/internal/nar"
)

// A listingNode is a file in the listing of a NAR, the .ls file of a cache; a
// directory's entries follow it instead of standing in it.
type listingNode struct {
	Type       string `json:"type"`
	Size       *int64 `json:"size,omitempty"`
	Executable bool   `json:"executable,omitempty"`
	NAROffset  int64  `json:"narOffset,omitempty"`
	Target     string `json:"target,omitempty"`
}

// WriteListing reads a NAR and writes what is in it as Nix's JSON. Its memory does
// not depend on how much that is.
func WriteListing(w io.Writer, archive io.Reader) error {
	l := &lister{w: bufio.NewWriter(w)}
	l.text(`{"version":1,"root":`)
	r := nar.NewReader(bufio.NewReaderSize(archive, 128<<10))
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		l.entry(e)
	}
	for len(l.open) > 0 {
		l.close()
	}
	l.text("}\n")
	return l.w.Flush()
}

// A lister keeps the directories that the next entry may be in. Errors of the
// writer stick.
type lister struct {
	w    *bufio.Writer
	open []int // lengths of the paths of directories
	more bool  // the innermost has an entry
}

func (l *lister) text(s string) { l.w.WriteString(s) }

func (l *lister) entry(e *nar.Entry) {
	if e.Path != "" {
		l.leave(max(0, len(e.Path)-len(e.Name())-1))
		if l.more {
			l.text(",")
		}
		l.json(listedName(e.Name()))
		l.text(":")
	}
	l.more = true
	switch e.Kind {
	case nar.Directory:
		l.text(`{"type":"directory","entries":{`)
		l.open, l.more = append(l.open, len(e.Path)), false
	case nar.Symlink:
		l.json(listingNode{Type: "symlink", Target: listedName(e.Target)})
	default:
		l.json(listingNode{Type: "regular", Size: &e.Size, Executable: e.Executable, NAROffset: e.Offset})
	}
}

// listedName returns a name as JSON can hold it: a byte that is not UTF-8 as \xNN, which
// keeps the names of a directory apart.
func listedName(name string) string {
	if utf8.ValidString(name) {
		return name
	}
	var b strings.Builder
	for len(name) > 0 {
		r, size := utf8.DecodeRuneInString(name)
		if r == utf8.RuneError && size == 1 {
			fmt.Fprintf(&b, `\x%02x`, name[0])
		} else {
			b.WriteString(name[:size])
		}
		name = name[size:]
	}
	return b.String()
}

// leave ends directories until the one with a path of that length, which is open, is the
// innermost.
func (l *lister) leave(dir int) {
	for l.open[len(l.open)-1] != dir {
		l.close()
	}
}

func (l *lister) close() {
	l.text("}}")
	l.open, l.more = l.open[:len(l.open)-1], true
}

func (l *lister) json(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("%T: %v", v, err)) // there is nothing in it that could fail
	}
	l.w.Write(b)
}

package remote

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/copy-closure/copy-closure/internal/wire"
)

// marker begins the line that our start script prints before it starts a program;
// the program's name or path follows.
const marker = "@copy-closure-far-end "

// maxPrelude bounds what a far end may print before it speaks the protocol.
const maxPrelude = 64 << 10

// A prelude is what the far end printed before its greeting.
type prelude struct {
	program string // what the start script found; empty where there was no script
	room    *Room  // nil: it was not told
	offer   offer  // of the peer protocol, where the far end made one
	noise   string // everything else
}

// A serveDialect begins sessions of the serve protocol.
type serveDialect struct{}

func (serveDialect) name() string { return "serve protocol" }

func (serveDialect) hello(w *wire.Writer) {
	w.Uint64(serveMagicClient)
	w.Uint64(serveVersion)
}

// greet reads up to the server's magic number and its version.
func (d serveDialect) greet(c *conn, r *wire.Reader) error {
	if err := c.readPrelude(r, serveMagicServer); err != nil {
		return err
	}
	c.version = r.Uint64()
	if err := r.Err(); err != nil {
		return err
	}
	if c.version>>8 != 2 || c.version < serveMinVersion {
		return &wire.FormatError{Msg: fmt.Sprintf("it speaks version %d.%d of the serve protocol; 2.4 (Nix 2.0) or newer is needed",
			c.version>>8, c.version&0xff)}
	}
	c.warnOfNoise()
	close(c.greeted)
	return nil
}

func (c *conn) warnOfNoise() {
	if c.prelude.noise != "" {
		c.log.Warn("the far end's shell prints text before the program starts; make its start-up files quiet for non-interactive logins",
			"text", quoteForeign(c.prelude.noise))
	}
}

// readPrelude reads up to the server's magic number.
func (c *conn) readPrelude(r *wire.Reader, magic uint64) error {
	var err error
	c.prelude, err = findMagic(r, magic)
	var silent *preludeError
	if errors.As(err, &silent) {
		silent.protocol = c.dialect.name()
	}
	return err
}

// findMagic finds the server's magic number behind whatever a login shell prints.
func findMagic(r *wire.Reader, number uint64) (prelude, error) {
	magic := string(binary.LittleEndian.AppendUint64(nil, number))
	var p prelude
	var text []byte
	for len(text) < maxPrelude {
		b, err := r.Raw().ReadByte()
		if err != nil {
			return p, &preludeError{text: p.noise + string(text), bare: parseMissing(p.program), err: err}
		}
		text = append(text, b)
		switch {
		case b == '\n':
			p.addLine(string(text))
			text = text[:0]
		case strings.HasSuffix(string(text), magic):
			p.noise += string(text[:len(text)-len(magic)])
			return p, nil
		}
		if len(p.noise) > maxPrelude {
			break
		}
	}
	return p, &preludeError{text: p.noise + string(text), endless: true}
}

// addLine takes a whole line, which may be a marker with noise before it.
func (p *prelude) addLine(line string) {
	if noise, offered, ok := strings.Cut(line, offerMarker); ok {
		p.noise += noise
		p.offer = parseOffer(offered)
		return
	}
	noise, found, ok := strings.Cut(line, marker)
	p.noise += noise
	if figures, told := strings.CutPrefix(found, roomWord+" "); told {
		p.room = parseRoom(figures)
	} else if ok {
		p.program = strings.TrimSpace(found)
	}
}

// A preludeError says that no server ever spoke.
type preludeError struct {
	protocol string         // which was expected
	text     string         // what came instead
	endless  bool           // and would not stop
	bare     *BareHostError // the start script found no program
	err      error          // of reading
	cause    error          // how the far program ended, where it told
}

func (e *preludeError) Error() string {
	switch {
	case e.bare != nil:
		return e.bare.Error()
	case e.text != "":
		text := "the far end does not speak Nix's " + e.protocol + "; it printed " + quoteForeign(e.text) +
			" (a login banner or shell start-up file may be in the way)"
		if e.cause != nil {
			text += "; " + e.cause.Error()
		}
		return text
	case e.cause != nil:
		return e.cause.Error()
	}
	return "the far end closed the connection before it said anything"
}

func (e *preludeError) Unwrap() []error {
	if e.bare != nil {
		return []error{e.bare}
	}
	return []error{e.err, e.cause}
}

package remote

import (
	"fmt"
	"strings"

	"github.com/copy-closure/copy-closure/internal/wire"
)

// Limits on what a daemon says before an answer.
const (
	maxTraces = 1 << 10 // of an error
	maxFields = 1 << 10 // of an activity or a result
)

// readMessages reads what a daemon says before the answer to a request. The error
// is a *refusal where there will be no answer. Pulled is told where the daemon asks
// for a piece of the path that is being sent; nil where none is.
func (c *conn) readMessages(r *wire.Reader, pulled func(n uint64) error) error {
	for {
		tag := r.Uint64()
		switch tag {
		case stderrLast:
			return r.Err()
		case stderrError:
			return c.readError(r)
		case stderrNext:
			c.logForeign(r.String(wire.MaxText))
		case stderrStartActivity:
			r.Uint64() // number
			r.Uint64() // level
			r.Uint64() // type
			c.logForeign(r.String(wire.MaxText))
			skipFields(r)
			r.Uint64() // parent
		case stderrStopActivity:
			r.Uint64()
		case stderrResult:
			r.Uint64() // activity
			r.Uint64() // type
			skipFields(r)
		case stderrRead:
			n := r.Uint64()
			if pulled == nil {
				return &wire.FormatError{Msg: "it asks for data where none is sent"}
			}
			if err := pulled(n); err != nil {
				return err
			}
		default:
			r.Fail(&wire.FormatError{Msg: fmt.Sprintf("it sends a message of the unknown kind %#x", tag)})
		}
		if err := r.Err(); err != nil {
			return err
		}
	}
}

func (c *conn) logForeign(text string) {
	text = strings.TrimSpace(text)
	if text == "" {
		return
	}
	c.log.Debug("the far end says", "text", text)
	if c.overhear != nil {
		c.overhear(text)
	}
}

// skipFields reads the fields of an activity or a result, of which nothing is used.
func skipFields(r *wire.Reader) {
	for range r.Count(maxFields) {
		switch kind := r.Uint64(); kind {
		case 0:
			r.Uint64()
		case 1:
			r.String(wire.MaxText)
		default:
			r.Fail(&wire.FormatError{Msg: fmt.Sprintf("it sends a field of the unknown type %d", kind)})
		}
		if r.Err() != nil {
			return
		}
	}
}

// readError reads why a request was refused.
func (c *conn) readError(r *wire.Reader) error {
	if c.version < workerStructured {
		text := r.String(wire.MaxText)
		r.Uint64() // exit status
		return refuse(r, text)
	}
	r.String(wire.MaxField) // "Error"
	r.Uint64()              // level
	r.String(wire.MaxField) // name
	text := r.String(wire.MaxText)
	noPosition(r)
	lines := []string{text}
	for range r.Count(maxTraces) {
		noPosition(r)
		lines = append(lines, "… "+strings.TrimSpace(r.String(wire.MaxField)))
		if r.Err() != nil {
			break
		}
	}
	return refuse(r, strings.Join(lines, "\n"))
}

// noPosition reads the number that would announce a position in a source file.
func noPosition(r *wire.Reader) {
	if have := r.Uint64(); have != 0 {
		r.Fail(&wire.FormatError{Msg: "its error has a position, for which the protocol has no form"})
	}
}

func refuse(r *wire.Reader, text string) error {
	if err := r.Err(); err != nil {
		return err
	}
	return &refusal{&FarError{Text: clipForeign(text)}}
}

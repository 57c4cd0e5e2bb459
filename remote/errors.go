package remote

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/show"
)

// A FarError is a failure of the program at the far end, in its own words.
// It is nix.ErrNotTrusted, nix.ErrNoSpace, nix.ErrDamaged or nix.ErrNotValid where
// the words of a known Nix say so.
type FarError struct {
	Text  string // what it said, not fit for a terminal
	cause error  // of the stream, such as an exit status
}

// farError makes a FarError of how a far program ended.
func farError(err error) *FarError {
	return &FarError{Text: clipForeign(err.Error()), cause: err}
}

const signRemedy = " (sign the path with a key that the far end trusts, add its key to trusted-public-keys there, or log in as one of its trusted-users)"

func (e *FarError) Error() string {
	if e.Is(nix.ErrNotTrusted) && !strings.HasSuffix(e.Text, signRemedy) {
		return e.Text + signRemedy
	}
	return e.Text
}

func (e *FarError) Unwrap() error { return e.cause }

// Is finds the reason in the far end's text.
func (e *FarError) Is(target error) bool {
	text := strings.ToLower(show.Text(e.Text)) // without the colours of Nix
	for _, known := range farReasons {
		if known.reason == target && strings.Contains(text, known.text) {
			return true
		}
	}
	return false
}

// farReasons are phrases of Nix 2.0 to 2.35 and of our own server.
var farReasons = []struct {
	text   string
	reason error
}{
	{"lacks a valid signature", nix.ErrNotTrusted},
	{"lacks a signature by a trusted key", nix.ErrNotTrusted},
	{"is not trusted", nix.ErrNotTrusted},
	{"no space left", nix.ErrNoSpace},
	{"disk quota exceeded", nix.ErrNoSpace},
	{"hash mismatch importing path", nix.ErrDamaged},
	{"size mismatch importing path", nix.ErrDamaged},
	{"nar hash is ", nix.ErrDamaged},
	{"nar has ", nix.ErrDamaged},
	{"content is damaged", nix.ErrDamaged},
	{"bad archive: ", nix.ErrDamaged},
	{"is not valid", nix.ErrNotValid},
}

// What is kept of an error of the other side: as many lines as a screen has, and no more
// bytes than they need.
const (
	maxForeignLines = 20
	maxForeignBytes = 16 << 10
)

// clipForeign bounds text of the other side. Whoever shows it escapes what would control
// a terminal.
func clipForeign(s string) string {
	s = strings.TrimSpace(s)
	end := ""
	lines := strings.Split(s, "\n")
	if more := len(lines) - maxForeignLines; more > 0 {
		s, end = strings.Join(lines[:maxForeignLines], "\n"), fmt.Sprintf("\n… (%d more lines)", more)
	}
	if len(s) > maxForeignBytes {
		s = strings.ToValidUTF8(s[:maxForeignBytes], "") + "…"
	}
	return s + end
}

// quoteForeign shortens and quotes text of the other side.
func quoteForeign(s string) string {
	const limit = 200
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return strconv.Quote(s)
}

package remote

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A FarError is a failure of the program at the far end, in its own words.
// It is nix.ErrNotTrusted, nix.ErrNoSpace, nix.ErrDamaged or nix.ErrNotValid where
// the words of a known Nix say so.
type FarError struct {
	Text  string // what it said, without control characters
	cause error  // of the stream, such as an exit status
}

// farError makes a FarError of how a far program ended.
func farError(err error) *FarError {
	return &FarError{Text: cleanForeign(err.Error()), cause: err}
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
	for _, known := range farReasons {
		if known.reason == target && strings.Contains(strings.ToLower(e.Text), known.text) {
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
	{"bad archive: ", nix.ErrDamaged},
	{"is not valid", nix.ErrNotValid},
}

var ansiEscape = regexp.MustCompile("\x1b(\\[[0-9;?]*[ -/]*[@-~]|\\][^\x07\x1b]*(\x07|\x1b\\\\)|[@-_])")

// cleanForeign makes text of the other side safe for a terminal and for one line.
func cleanForeign(s string) string {
	s = ansiEscape.ReplaceAllString(s, "")
	s = strings.TrimSpace(s)
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r < ' ' || r == 0x7f || 0x80 <= r && r < 0xa0:
			return -1
		}
		return r
	}, s)
}

// quoteForeign shortens and quotes text of the other side.
func quoteForeign(s string) string {
	const limit = 200
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return strconv.Quote(s)
}

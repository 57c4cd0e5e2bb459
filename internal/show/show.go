// Package show makes text from elsewhere fit to be shown to people: without what would
// control their terminal, and without the secrets of URLs.
package show

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// colours are the escape sequences that only change how text looks. Nix and many other
// programs send them; without them the text says the same.
var colours = regexp.MustCompile("\x1b\\[[0-9;:]*[mK]")

// Text returns s without colours, and with everything else that is neither visible nor a
// space as an escape such as \x1b or \u202e: control characters, bytes that are not
// UTF-8, marks that turn the direction of writing, characters without a width. Tabs and
// line breaks stay; a line break with a carriage return becomes one without.
func Text(s string) string { return escape(s, "\n\t") }

// Line returns s as Text does, but on one line: tabs and line breaks are escaped, too.
func Line(s string) string { return escape(s, "") }

// Indented returns s as Text does. All lines but the first are indented, so that none of
// them can pass for a line of ours.
func Indented(s string) string { return strings.ReplaceAll(Text(s), "\n", "\n  ") }

func escape(s, keep string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !unicode.IsGraphic(r) }) {
		return s
	}
	s = strings.ReplaceAll(colours.ReplaceAllString(s, ""), "\r\n", "\n")
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case unicode.IsGraphic(r) || strings.ContainsRune(keep, r):
			b.WriteRune(r)
		default:
			b.WriteString(name(r))
		}
		s = s[size:]
	}
	return b.String()
}

// name returns the escape of a character in the form of Go and of many shells.
func name(r rune) string {
	switch {
	case r == '\n':
		return `\n`
	case r == '\t':
		return `\t`
	case r == '\r':
		return `\r`
	case r < utf8.RuneSelf:
		return fmt.Sprintf(`\x%02x`, r)
	case r > 0xffff:
		return fmt.Sprintf(`\U%08x`, r)
	}
	return fmt.Sprintf(`\u%04x`, r)
}

// JSON returns a JSON text with everything that Text would escape as \uXXXX, which means
// the same to whoever parses it.
func JSON(text []byte) []byte {
	var b []byte
	for _, r := range string(text) {
		switch {
		case r == '\n' || unicode.IsGraphic(r):
			b = utf8.AppendRune(b, r)
		case r > 0xffff:
			b = fmt.Appendf(b, `\u%04x\u%04x`, 0xd800+(r-0x10000)>>10, 0xdc00+(r-0x10000)&0x3ff)
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
	}
	return b
}

package transport

import "strings"

// Quote joins words to a command line that a POSIX shell splits into the same words
// again. fish and csh agree, except about line breaks (csh) and NUL bytes (all).
func Quote(words ...string) string {
	var b strings.Builder
	for i, word := range words {
		if i > 0 {
			b.WriteByte(' ')
		}
		quoteWord(&b, word)
	}
	return b.String()
}

func quoteWord(b *strings.Builder, word string) {
	if word != "" && strings.IndexFunc(word, special) < 0 && word[0] != '=' {
		b.WriteString(word)
		return
	}
	quoted := false
	for i := range len(word) {
		// fish knows escapes within single quotes, and csh's history does not
		// stop at them: these three characters stand outside.
		outside := word[i] == '\'' || word[i] == '\\' || word[i] == '!'
		if quoted == outside {
			b.WriteByte('\'')
			quoted = !quoted
		}
		if outside {
			b.WriteByte('\\')
		}
		b.WriteByte(word[i])
	}
	if quoted {
		b.WriteByte('\'')
	}
	if word == "" {
		b.WriteString("''")
	}
}

// special reports whether a shell might read more into r than the character.
func special(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return false
	}
	return !strings.ContainsRune("-_./:=,+@", r)
}

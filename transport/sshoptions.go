package transport

import (
	"fmt"
	"strings"

	"github.com/kballard/go-shellquote"
)

// ParseSSHOptions splits the text of NIX_SSHOPTS into words as a shell would, and
// refuses what no connection of ours can have: options that would change what runs
// at the far end or where its output goes, and words that are no options.
func ParseSSHOptions(s string) ([]string, error) {
	words, err := shellquote.Split(s)
	if err != nil {
		return nil, fmt.Errorf("ssh options %q: %w", s, err)
	}
	if _, err := parseFlags(words); err != nil {
		return nil, err
	}
	return words, nil
}

// A flag is one option of ssh's command line.
type flag struct {
	letter byte
	value  string // for those that take one
}

// How a flag of ssh is treated.
type flagUse int

const (
	flagHonoured flagUse = iota + 1 // what it says shows in the output of ssh -G, or does not matter to us
	flagOpenSSH                     // only the ssh program can do that
	flagRefused                     // not with us
)

// flags is ssh's command line, as of OpenSSH 10. The refused ones run something
// else than our command, take its streams away, or forward ports.
var flags = map[byte]struct {
	value bool
	use   flagUse
}{
	'4': {false, flagHonoured},
	'6': {false, flagHonoured},
	'A': {false, flagOpenSSH},
	'a': {false, flagHonoured},
	'B': {true, flagOpenSSH},
	'b': {true, flagHonoured},
	'C': {false, flagHonoured},
	'c': {true, flagHonoured},
	'D': {true, flagRefused},
	'E': {true, flagOpenSSH},
	'e': {true, flagHonoured},
	'F': {true, flagHonoured},
	'f': {false, flagRefused},
	'G': {false, flagRefused},
	'g': {false, flagRefused},
	'I': {true, flagOpenSSH},
	'i': {true, flagHonoured},
	'J': {true, flagHonoured},
	'K': {false, flagOpenSSH},
	'k': {false, flagHonoured},
	'L': {true, flagRefused},
	'l': {true, flagHonoured},
	'M': {false, flagRefused},
	'm': {true, flagHonoured},
	'N': {false, flagRefused},
	'n': {false, flagRefused},
	'O': {true, flagRefused},
	'o': {true, flagHonoured},
	'P': {true, flagHonoured},
	'p': {true, flagHonoured},
	'Q': {true, flagRefused},
	'q': {false, flagHonoured},
	'R': {true, flagRefused},
	'S': {true, flagHonoured},
	's': {false, flagRefused},
	'T': {false, flagHonoured},
	't': {false, flagRefused},
	'V': {false, flagRefused},
	'v': {false, flagHonoured},
	'W': {true, flagRefused},
	'w': {true, flagRefused},
	'X': {false, flagOpenSSH},
	'x': {false, flagHonoured},
	'Y': {false, flagOpenSSH},
	'y': {false, flagHonoured},
}

// parseFlags reads words as getopt would.
func parseFlags(words []string) ([]flag, error) {
	var all []flag
	for i := 0; i < len(words); i++ {
		word := words[i]
		if len(word) < 2 || word[0] != '-' || word == "--" {
			return nil, fmt.Errorf("ssh options: %q is not an option", word)
		}
		for rest := word[1:]; rest != ""; {
			f := flag{letter: rest[0]}
			rest = rest[1:]
			known, ok := flags[f.letter]
			if !ok || known.use == flagRefused {
				return nil, fmt.Errorf("ssh options: -%c cannot be used here", f.letter)
			}
			if known.value {
				if f.value, rest = rest, ""; f.value == "" {
					i++
					if i == len(words) {
						return nil, fmt.Errorf("ssh options: -%c needs a value", f.letter)
					}
					f.value = words[i]
				}
			}
			all = append(all, f)
		}
	}
	return all, nil
}

// setting translates a flag to the setting that it stands for, with the name in
// lower case. Most letters that change nothing for us have none.
func (f flag) setting() (key, value string) {
	switch f.letter {
	case '4':
		return "addressfamily", "inet"
	case '6':
		return "addressfamily", "inet6"
	case 'C':
		return "compression", "yes"
	case 'b':
		return "bindaddress", f.value
	case 'c':
		return "ciphers", f.value
	case 'i':
		return "identityfile", f.value
	case 'J':
		return "proxyjump", f.value
	case 'k':
		return "gssapiauthentication", "no"
	case 'l':
		return "user", f.value
	case 'm':
		return "macs", f.value
	case 'p':
		return "port", f.value
	case 'S':
		return "controlpath", f.value
	case 'o':
		return splitSetting(f.value)
	}
	return "", ""
}

// splitSetting splits "Key=Value" or "Key Value".
func splitSetting(s string) (key, value string) {
	s = strings.TrimSpace(s)
	i := strings.IndexAny(s, "= \t")
	if i < 0 {
		return strings.ToLower(s), ""
	}
	value = strings.TrimSpace(s[i:])
	value = strings.TrimSpace(strings.TrimPrefix(value, "="))
	return strings.ToLower(s[:i]), value
}

// configFile returns of the words those that name the configuration file.
func configFile(words []string) []string {
	options, err := parseFlags(words)
	if err != nil {
		return nil
	}
	for _, f := range options {
		if f.letter == 'F' {
			return []string{"-F", f.value}
		}
	}
	return nil
}

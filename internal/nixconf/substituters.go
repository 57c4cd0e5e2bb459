package nixconf

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Substituters returns the URLs of the caches to take paths from; none if the
// configuration says substitute = false.
func (s *Settings) Substituters() []string {
	if s.text("substitute") == "false" {
		return nil
	}
	return strings.Fields(s.text("substituters"))
}

// TrustedSubstituters returns the URLs of the caches that clients may name, besides
// those of Substituters; none with substitute = false.
func (s *Settings) TrustedSubstituters() []string {
	if s.text("substitute") == "false" {
		return nil
	}
	return strings.Fields(s.text("trusted-substituters"))
}

// NetrcFile returns the name of the file with passwords for web servers.
func (s *Settings) NetrcFile() string {
	if file := s.text("netrc-file"); file != "" {
		return file
	}
	return filepath.Join(s.systemDir, "netrc")
}

// ConnectTimeout returns how long to wait for a connection; 0 if nothing is said.
func (s *Settings) ConnectTimeout() (time.Duration, error) { return s.seconds("connect-timeout") }

// StallTimeout returns how long to wait for a server that sends nothing; 0 if
// nothing is said.
func (s *Settings) StallTimeout() (time.Duration, error) {
	return s.seconds("stalled-download-timeout")
}

// DownloadAttempts returns how often to try a download; 0 if nothing is said.
func (s *Settings) DownloadAttempts() (int, error) { return s.number("download-attempts") }

func (s *Settings) seconds(key string) (time.Duration, error) {
	n, err := s.number(key)
	return time.Duration(n) * time.Second, err
}

func (s *Settings) number(key string) (int, error) {
	text := s.text(key)
	if text == "" {
		return 0, nil
	}
	const most = 1 << 30
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > most {
		return 0, fmt.Errorf("%s = %s: this is no number from 0 to %d", key, text, most)
	}
	return n, nil
}

// maxNetrc bounds a netrc file in bytes.
const maxNetrc = 1 << 20

// A Netrc holds passwords for hosts.
type Netrc struct {
	machines map[string]login // "" is the default entry
}

type login struct{ name, password string }

// ReadNetrc reads a netrc file. One that is not there, or that this user may not
// read, is empty.
func ReadNetrc(file string) (*Netrc, error) {
	info, err := os.Stat(file)
	if err != nil {
		return new(Netrc), nil
	}
	if info.Size() > maxNetrc {
		return nil, fmt.Errorf("%s has more than %d bytes", file, maxNetrc)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return new(Netrc), nil
	}
	return parseNetrc(string(text)), nil
}

// parseNetrc takes words in pairs, "machine HOST login NAME password WORD", and
// passes over macros, which end at an empty line. The first entry for a host counts.
func parseNetrc(text string) *Netrc {
	n := &Netrc{machines: make(map[string]login)}
	host, current, begun := "", login{}, false
	finish := func() {
		if _, known := n.machines[host]; begun && !known {
			n.machines[host] = current
		}
		current, begun = login{}, true
	}
	for words := netrcWords(text); len(words) > 0; {
		key := words[0]
		words = words[1:]
		if key == "default" {
			finish()
			host = ""
			continue
		}
		if len(words) == 0 {
			break
		}
		value := words[0]
		words = words[1:]
		switch key {
		case "machine":
			finish()
			host = strings.ToLower(value)
		case "login":
			current.name = value
		case "password":
			current.password = value
		}
	}
	finish()
	return n
}

// netrcWords leaves out comments and macros.
func netrcWords(text string) []string {
	var words []string
	inMacro := false
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0:
			inMacro = false
		case inMacro || strings.HasPrefix(fields[0], "#"):
		case fields[0] == "macdef":
			inMacro = true
		default:
			words = append(words, fields...)
		}
	}
	return words
}

// Lookup returns what to say to a host.
func (n *Netrc) Lookup(host string) (name, password string, ok bool) {
	entry, ok := n.machines[strings.ToLower(host)]
	if !ok {
		entry, ok = n.machines[""]
	}
	return entry.name, entry.password, ok
}

package nixconf

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Unlimited is a timeout of which the configuration says 0: none.
const Unlimited time.Duration = -1

// Substituters returns the URLs of the caches to take paths from; none if the
// configuration says substitute = false.
func (s *Settings) Substituters() []string { return s.caches("substituters") }

// TrustedSubstituters returns the URLs of the caches that clients may name, besides
// those of Substituters; none with substitute = false.
func (s *Settings) TrustedSubstituters() []string { return s.caches("trusted-substituters") }

func (s *Settings) caches(key string) []string {
	if !s.flag("substitute") {
		return nil
	}
	return s.words(key)
}

// NetrcFile returns the name of the file with passwords for web servers.
func (s *Settings) NetrcFile() string {
	if file, set := s.values["netrc-file"]; set {
		return file
	}
	return filepath.Join(systemDir(s.env), "netrc")
}

// CertificateFile returns the name of the file with the certificates of those who
// vouch for web servers: ssl-cert-file, else NIX_SSL_CERT_FILE, else SSL_CERT_FILE.
// It is empty where nothing is said: then the system's are used.
func (s *Settings) CertificateFile() string {
	if file := s.text("ssl-cert-file"); file != "" {
		return file
	}
	return s.env.nonEmpty("NIX_SSL_CERT_FILE", "SSL_CERT_FILE")
}

// HTTP2 reports whether web servers may be spoken to in HTTP/2.
func (s *Settings) HTTP2() bool { return s.flag("http2") }

// HTTPConnections returns how many connections to web servers may be open at once.
// Set is false where nothing is said; 0 is no limit.
func (s *Settings) HTTPConnections() (n int, set bool) { return s.number("http-connections") }

// ConnectTimeout returns how long to wait for a connection: 0 if nothing is said, or
// Unlimited.
func (s *Settings) ConnectTimeout() time.Duration { return s.seconds("connect-timeout") }

// StallTimeout returns how long to wait for a server that sends nothing: 0 if nothing
// is said, or Unlimited.
func (s *Settings) StallTimeout() time.Duration { return s.seconds("stalled-download-timeout") }

// DownloadAttempts returns how often to try a download; 0 if nothing is said.
func (s *Settings) DownloadAttempts() int {
	n, set := s.number("download-attempts")
	if set {
		return max(n, 1) // as in Nix, where 0 is once, too
	}
	return 0
}

func (s *Settings) seconds(key string) time.Duration {
	switch n, set := s.number(key); {
	case !set:
		return 0
	case n == 0:
		return Unlimited
	default:
		return time.Duration(n) * time.Second
	}
}

// number returns the value of a number, which set has checked.
func (s *Settings) number(key string) (n int, set bool) {
	text, set := s.values[key]
	n, _ = parseNumber(text)
	return n, set
}

// parseNumber reads a number that may end in K, M, G or T. Larger ones than anybody
// can mean are taken for the largest.
func parseNumber(text string) (int, error) {
	const most = 1 << 30
	digits, shift := text, 0
	if n := len(text); n > 0 {
		if unit := strings.IndexByte("KMGT", text[n-1]&^0x20); unit >= 0 {
			digits, shift = text[:n-1], 10*(unit+1)
		}
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number from 0", text)
	}
	if n > most>>min(shift, 30) {
		return most, nil
	}
	return int(n << shift), nil
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
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0) // it may be a FIFO
	if err != nil {
		return new(Netrc), nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.IsDir() {
		return new(Netrc), nil
	}
	if info.Mode()&os.ModeNamedPipe != 0 {
		return nil, fmt.Errorf("%s is not a file", file)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxNetrc+1))
	if err != nil {
		return new(Netrc), nil
	}
	if len(text) > maxNetrc {
		return nil, fmt.Errorf("%s has more than %d bytes", file, maxNetrc)
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
		if strings.EqualFold(key, "default") {
			finish()
			host = ""
			continue
		}
		if len(words) == 0 {
			break
		}
		value := words[0]
		words = words[1:]
		switch strings.ToLower(key) {
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
		fields := netrcFields(line)
		switch {
		case strings.TrimSpace(line) == "":
			inMacro = false
		case inMacro || len(fields) == 0:
		case strings.EqualFold(fields[0], "macdef"):
			inMacro = true
		default:
			words = append(words, fields...)
		}
	}
	return words
}

// netrcFields splits a line as curl does. A word in double quotes may hold spaces and
// escapes; "#" at the beginning of a word begins a comment.
func netrcFields(line string) []string {
	var words []string
	for {
		line = strings.TrimLeft(line, " \t\r\n")
		if line == "" || line[0] == '#' {
			return words
		}
		end := strings.IndexAny(line, " \t\r\n")
		if end < 0 {
			end = len(line)
		}
		word := line[:end]
		if line[0] == '"' {
			word, end = quotedWord(line)
		}
		words, line = append(words, word), line[end:]
	}
}

// quotedWord reads the word in quotes that line begins with, and returns its length in
// the line.
func quotedWord(line string) (word string, length int) {
	var b strings.Builder
	for i := 1; i < len(line); i++ {
		switch c := line[i]; {
		case c == '"':
			return b.String(), i + 1
		case c == '\\' && i+1 < len(line):
			i++
			b.WriteString(netrcEscapes.Replace(line[i : i+1]))
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), len(line)
}

// netrcEscapes are the letters that mean something else behind a backslash.
var netrcEscapes = strings.NewReplacer("n", "\n", "r", "\r", "t", "\t")

// Lookup returns what to say to a host.
func (n *Netrc) Lookup(host string) (name, password string, ok bool) {
	entry, ok := n.machines[strings.ToLower(host)]
	if !ok {
		entry, ok = n.machines[""]
	}
	return entry.name, entry.password, ok
}

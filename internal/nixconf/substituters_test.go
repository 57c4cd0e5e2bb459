package nixconf_test

import (
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/copy-closure/copy-closure/internal/nixconf"
)

func load(t *testing.T, text string) *nixconf.Settings {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "nix.conf"), text)
	s, err := nixconf.Load(environment("NIX_CONF_DIR", dir))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSubstituters(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"default": {"", []string{"https://cache.nixos.org/"}},
		"none":    {"substituters =\n", nil},
		"off":     {"substitute = false\n", nil},
		"extra":   {"extra-substituters = http://a file:///b\n", []string{"https://cache.nixos.org/", "http://a", "file:///b"}},
		"alias":   {"binary-caches = http://a\n", []string{"http://a"}},
	} {
		if got := load(t, test.text).Substituters(); !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

func TestTrustedSubstituters(t *testing.T) {
	for text, want := range map[string][]string{
		"":                                  nil,
		"trusted-substituters = http://a\n": {"http://a"},
		"trusted-substituters = http://a\nsubstitute = false\n":                     nil,
		"trusted-binary-caches = http://a\nextra-trusted-substituters = http://b\n": {"http://a", "http://b"},
	} {
		if got := load(t, text).TrustedSubstituters(); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestTimeouts(t *testing.T) {
	s := load(t, "connect-timeout = 3\nstalled-download-timeout = 0\ndownload-attempts = 0\nbinary-caches-parallel-connections = 7\n")
	if got := s.ConnectTimeout(); got != 3*time.Second {
		t.Errorf("connect-timeout = 3: got %v", got)
	}
	if got := s.StallTimeout(); got != nixconf.Unlimited {
		t.Errorf("stalled-download-timeout = 0: got %v, want no limit", got)
	}
	if got := s.DownloadAttempts(); got != 1 {
		t.Errorf("download-attempts = 0: got %d, want 1 as in Nix", got)
	}
	if n, set := s.HTTPConnections(); n != 7 || !set {
		t.Errorf("http-connections: got %d, %v, want 7", n, set)
	}
	if s := load(t, ""); s.ConnectTimeout() != 0 || s.StallTimeout() != 0 || s.DownloadAttempts() != 0 {
		t.Error("a timeout that nobody has set is not 0")
	}
}

func TestNetrc(t *testing.T) {
	file := filepath.Join(t.TempDir(), "netrc")
	write(t, file, `# passwords
machine cache.example login alice password one
macdef init
  machine trap login eve password none

machine other.example
  password two
  login bob
machine cache.example login mallory password three
default login anonymous password guest
`)
	n, err := nixconf.ReadNetrc(file)
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string][2]string{
		"cache.example": {"alice", "one"},
		"Cache.Example": {"alice", "one"},
		"other.example": {"bob", "two"},
		"trap":          {"anonymous", "guest"},
	} {
		name, password, ok := n.Lookup(host)
		if got := [2]string{name, password}; !ok || got != want {
			t.Errorf("%s: got %q %v, want %q", host, got, ok, want)
		}
	}
	none, err := nixconf.ReadNetrc(file + "-missing")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, ok := none.Lookup("cache.example"); ok {
		t.Error("a missing file has an entry")
	}
}

// TestNetrcWords has the words that curl reads (lib/netrc.c).
func TestNetrcWords(t *testing.T) {
	file := filepath.Join(t.TempDir(), "netrc")
	write(t, file, `machine quoted.example login "a b" password "p\"q\\r\ts"
MACHINE upper.example LOGIN carol Password x#y
machine comment.example login dave password one # machine quoted.example
`)
	n, err := nixconf.ReadNetrc(file)
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string][2]string{
		"quoted.example":  {"a b", "p\"q\\r\ts"},
		"upper.example":   {"carol", "x#y"},
		"comment.example": {"dave", "one"},
	} {
		name, password, _ := n.Lookup(host)
		if got := [2]string{name, password}; got != want {
			t.Errorf("%s: got %q, want %q", host, got, want)
		}
	}
}

// TestNetrcFiles may not wait for whoever would write into a FIFO, nor read without end.
func TestNetrcFiles(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for file, refused := range map[string]bool{fifo: true, "/dev/zero": true, "/dev/null": false, dir: false} {
		if _, err := nixconf.ReadNetrc(file); (err != nil) != refused {
			t.Errorf("%s: %v", file, err)
		}
	}
}

package nixconf_test

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/copy-closure/copy-closure/internal/nixconf"
)

func load(t *testing.T, text string) *nixconf.Settings {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "nix.conf"), text)
	s, err := nixconf.Load(func(key string) string { return map[string]string{"NIX_CONF_DIR": dir}[key] })
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
	s := load(t, "connect-timeout = 3\nstalled-download-timeout = -1\n")
	if got, err := s.ConnectTimeout(); err != nil || got != 3*time.Second {
		t.Errorf("connect-timeout: %v, %v", got, err)
	}
	if got, err := s.StallTimeout(); err == nil {
		t.Errorf("a negative timeout is taken as %v", got)
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

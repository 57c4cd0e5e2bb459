package nixconf_test

import (
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixconf"
)

const (
	keyA = "a-1:1XqT4L74s86NxgO2ai+9HKW/BlVM94Y7vC226KwV6xM="
	keyB = "b-1:1XqT4L74s86NxgO2ai+9HKW/BlVM94Y7vC226KwV6xM="
)

func TestLoad(t *testing.T) {
	cases := []struct {
		name, system, user, inline string
		keys                       []string
		require                    bool
	}{
		{name: "nothing", keys: []string{"cache.nixos.org-1"}, require: true},
		{name: "system", system: "trusted-public-keys = " + keyA + " # ours\n", keys: []string{"a-1"}, require: true},
		{name: "user wins", system: "trusted-public-keys = " + keyA, user: "trusted-public-keys = " + keyB, keys: []string{"b-1"}, require: true},
		{name: "extra", user: "extra-trusted-public-keys = " + keyB, keys: []string{"cache.nixos.org-1", "b-1"}, require: true},
		{name: "include", system: "include more.conf\n!include none.conf", keys: []string{"a-1"}, require: true},
		{name: "inline", user: "require-sigs = true", inline: "require-sigs = false", keys: []string{"cache.nixos.org-1"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "etc/nix.conf"), c.system)
			write(t, filepath.Join(dir, "etc/more.conf"), "trusted-public-keys = "+keyA)
			write(t, filepath.Join(dir, "home/.config/nix/nix.conf"), c.user)
			s, err := nixconf.Load(environment("NIX_CONF_DIR", filepath.Join(dir, "etc"), "HOME", filepath.Join(dir, "home"), "NIX_CONFIG", c.inline))
			if err != nil {
				t.Fatal(err)
			}
			keys, err := s.TrustedKeys()
			if err != nil {
				t.Fatal(err)
			}
			if len(keys) != len(c.keys) {
				t.Errorf("keys: got %v, want %v", keys, c.keys)
			}
			for _, name := range c.keys {
				if _, ok := keys[name]; !ok {
					t.Errorf("key %s is not trusted", name)
				}
			}
			if got := s.RequireSignatures(); got != c.require {
				t.Errorf("require-sigs: got %v, want %v", got, c.require)
			}
		})
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no value":        "substituters\n",
		"missing include": "include nowhere.conf\n",
		"include loop":    "include nix.conf\n",
		"boolean":         "require-sigs = TRUE\n",
		"empty boolean":   "require-sigs =\n",
		"negative number": "connect-timeout = -1\n",
		"early mistake":   "http2 = off\nhttp2 = no\n",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "nix.conf"), text)
			_, err := nixconf.Load(environment("NIX_CONF_DIR", dir))
			if err == nil {
				t.Errorf("%q was accepted", text)
			}
		})
	}
}

// TestIncludeInVariable has NIX_CONFIG include a file, which has no directory to begin at.
func TestIncludeInVariable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "more.conf")
	write(t, file, "http2 = no\n")
	s, err := nixconf.Load(environment("NIX_CONFIG", "include "+file))
	if err != nil || s.HTTP2() {
		t.Errorf("an absolute path is not read: %v", err)
	}
	for _, line := range []string{"include more.conf", "!include more.conf"} {
		if _, err := nixconf.Load(environment("NIX_CONFIG", line)); err == nil {
			t.Errorf("%s was accepted", line)
		}
	}
}

// TestTrustedKeys holds that of several keys with one name the first is trusted.
func TestTrustedKeys(t *testing.T) {
	other, err := nix.GenerateSecretKey("a-1")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key")
	write(t, file, other.Text())
	for _, text := range []string{
		"trusted-public-keys = " + keyA + " " + other.Public().String(),
		"trusted-public-keys = " + keyA + "\nextra-trusted-public-keys = " + other.Public().String(),
		"trusted-public-keys = " + keyA + "\nsecret-key-files = " + file,
	} {
		keys, err := load(t, text).TrustedKeys()
		if err != nil {
			t.Fatal(err)
		}
		if got := keys["a-1"].String(); got != keyA {
			t.Errorf("%s: trusts %s, want the first", text, got)
		}
	}
}

func TestStore(t *testing.T) {
	for _, test := range []struct{ text, remote, want string }{
		{"", "", "auto"},
		{"", "daemon", "daemon"},
		{"store = /srv/x", "daemon", "/srv/x"},
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "nix.conf"), test.text)
		s, err := nixconf.Load(environment("NIX_CONF_DIR", dir, "NIX_REMOTE", test.remote))
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Store(); got != test.want {
			t.Errorf("%q, NIX_REMOTE=%q: got %q, want %q", test.text, test.remote, got, test.want)
		}
	}
}

// TestHome needs root's right to give a directory away.
func TestHome(t *testing.T) {
	u, err := user.LookupId(strconv.Itoa(os.Geteuid()))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	write(t, file, "")
	for home, want := range map[string]string{dir: dir, dir + "/none": dir + "/none", file + "/below": file + "/below"} {
		if got := nixconf.Home(environment("HOME", home)); got != want {
			t.Errorf("HOME=%s: got %s, want %s", home, got, want)
		}
	}
	if got := nixconf.Home(environment()); got != u.HomeDir {
		t.Errorf("without HOME: got %s, want %s", got, u.HomeDir)
	}
	if os.Geteuid() != 0 {
		return
	}
	if err := os.Chown(dir, 1, 1); err != nil {
		t.Fatal(err)
	}
	if got := nixconf.Home(environment("HOME", dir)); got != u.HomeDir {
		t.Errorf("HOME of another user: got %s, want %s", got, u.HomeDir)
	}
}

// environment has the variables of a list of names and values, and no others.
func environment(words ...string) nixconf.Environment {
	return func(name string) (string, bool) {
		for i := 0; i < len(words); i += 2 {
			if words[i] == name {
				return words[i+1], true
			}
		}
		return "", false
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

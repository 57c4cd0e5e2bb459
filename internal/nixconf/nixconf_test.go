package nixconf_test

import (
	"os"
	"path/filepath"
	"testing"

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
			env := map[string]string{"NIX_CONF_DIR": filepath.Join(dir, "etc"), "HOME": filepath.Join(dir, "home"), "NIX_CONFIG": c.inline}
			s, err := nixconf.Load(func(key string) string { return env[key] })
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
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "nix.conf"), text)
			_, err := nixconf.Load(func(key string) string {
				if key == "NIX_CONF_DIR" {
					return dir
				}
				return ""
			})
			if err == nil {
				t.Errorf("%q was accepted", text)
			}
		})
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

// Package nixconf reads nix.conf, and our own configuration file, which has the
// same form and keys.
package nixconf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// What Nix uses and trusts where nothing is configured: its public cache.
const (
	defaultKeys         = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="
	defaultSubstituters = "https://cache.nixos.org/"
)

// maxIncludes bounds how deep configuration files include each other.
const maxIncludes = 16

// Settings are the keys of a configuration with their values.
type Settings struct {
	values    map[string]string
	systemDir string // of nix.conf
}

// Load reads the configuration as Nix does: /etc/nix/nix.conf (or that of
// NIX_CONF_DIR), our own copy-closure.conf beside the user's files, the user's
// files, and NIX_CONFIG; the later wins. Files that do not exist are passed over.
func Load(getenv func(string) string) (*Settings, error) {
	s := &Settings{values: make(map[string]string), systemDir: systemDir(getenv)}
	for _, file := range files(getenv) {
		if err := s.readFile(file, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if err := s.parse(getenv("NIX_CONFIG"), "NIX_CONFIG", ".", 0); err != nil {
		return nil, err
	}
	return s, nil
}

func systemDir(getenv func(string) string) string {
	if dir := getenv("NIX_CONF_DIR"); dir != "" {
		return dir
	}
	return "/etc/nix"
}

// files lists the configuration files, the weakest first.
func files(getenv func(string) string) []string {
	list := []string{filepath.Join(systemDir(getenv), "nix.conf"), "/etc/copy-closure/copy-closure.conf"}
	if user := getenv("NIX_USER_CONF_FILES"); user != "" {
		words := strings.Split(user, ":")
		for i := len(words) - 1; i >= 0; i-- {
			list = append(list, words[i])
		}
		return list
	}
	config := getenv("XDG_CONFIG_HOME")
	if config == "" {
		config = filepath.Join(getenv("HOME"), ".config")
	}
	dirs := strings.Split(getenv("XDG_CONFIG_DIRS"), ":")
	for i := len(dirs) - 1; i >= 0; i-- {
		if dirs[i] != "" {
			list = append(list, filepath.Join(dirs[i], "nix/nix.conf"))
		}
	}
	return append(list, filepath.Join(config, "nix/nix.conf"), filepath.Join(config, "copy-closure/copy-closure.conf"))
}

func (s *Settings) readFile(name string, depth int) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return s.parse(string(text), name, filepath.Dir(name), depth)
}

// parse takes lines of "key = value", "extra-key = value", "include file" and
// "!include file"; "#" begins a comment.
func (s *Settings) parse(text, name, dir string, depth int) error {
	for number, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case len(words) == 2 && (words[0] == "include" || words[0] == "!include"):
			if err := s.include(words[1], dir, words[0] == "!include", depth); err != nil {
				return fmt.Errorf("%s:%d: %w", name, number+1, err)
			}
		case len(words) >= 2 && words[1] == "=":
			s.set(words[0], strings.Join(words[2:], " "))
		default:
			return fmt.Errorf("%s:%d: %q is not in the form key = value", name, number+1, line)
		}
	}
	return nil
}

func (s *Settings) include(file, dir string, optional bool, depth int) error {
	if depth == maxIncludes {
		return fmt.Errorf("include %s: more than %d files include each other", file, maxIncludes)
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(dir, file)
	}
	err := s.readFile(file, depth+1)
	switch {
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case optional:
		return nil
	}
	return fmt.Errorf("include %s: there is no such file", file)
}

// set gives a key its value; "extra-" appends to what is there.
func (s *Settings) set(key, value string) {
	if base, extra := strings.CutPrefix(key, "extra-"); extra {
		base = canonical(base)
		s.values[base] = strings.TrimSpace(s.text(base) + " " + value)
		return
	}
	s.values[canonical(key)] = value
}

// canonical resolves Nix's aliases.
func canonical(key string) string {
	switch key {
	case "binary-cache-public-keys":
		return "trusted-public-keys"
	case "binary-caches":
		return "substituters"
	case "trusted-binary-caches":
		return "trusted-substituters"
	case "filetransfer-retry-attempts":
		return "download-attempts"
	}
	return key
}

// text returns a key's value or its default.
func (s *Settings) text(key string) string {
	if value, ok := s.values[key]; ok {
		return value
	}
	switch key {
	case "trusted-public-keys":
		return defaultKeys
	case "substituters":
		return defaultSubstituters
	}
	return ""
}

// RequireSignatures reports require-sigs, which is true unless switched off.
func (s *Settings) RequireSignatures() bool { return s.text("require-sigs") != "false" }

// TrustedKeys returns trusted-public-keys and the public halves of those
// secret-key-files that can be read.
func (s *Settings) TrustedKeys() (nix.TrustedKeys, error) {
	keys, err := nix.NewTrustedKeys(strings.Fields(s.text("trusted-public-keys"))...)
	if err != nil {
		return nil, fmt.Errorf("trusted-public-keys: %w", err)
	}
	for _, file := range strings.Fields(s.text("secret-key-files")) {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // as Nix does: usually it is root's alone
		}
		key, err := nix.ParseSecretKey(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		keys[key.Name] = key.Public()
	}
	return keys, nil
}

// Package nixconf reads nix.conf, and our own configuration file, which has the
// same form and keys.
package nixconf

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A form says how the value of a key is written.
type form int

const (
	text form = iota
	list      // words; "extra-KEY" adds to them
	boolean
	number
)

// A setting is a key that is read. Default is its value where no file sets it.
type setting struct {
	form     form
	standard string
}

// settings are all keys that are read. Other keys are ignored.
var settings = map[string]setting{
	"allow-symlinked-store":    {boolean, "false"},
	"connect-timeout":          {form: number},
	"download-attempts":        {form: number},
	"http-connections":         {form: number},
	"http2":                    {boolean, "true"},
	"netrc-file":               {form: text},
	"require-sigs":             {boolean, "true"},
	"secret-key-files":         {form: list},
	"ssl-cert-file":            {form: text},
	"stalled-download-timeout": {form: number},
	"store":                    {form: text},
	"substitute":               {boolean, "true"},
	"substituters":             {list, "https://cache.nixos.org/"},
	"trusted-public-keys":      {list, "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="},
	"trusted-substituters":     {form: list},
}

// aliases are further names of keys.
var aliases = map[string]string{
	"binary-cache-public-keys":           "trusted-public-keys",
	"binary-caches":                      "substituters",
	"binary-caches-parallel-connections": "http-connections",
	"build-use-substitutes":              "substitute",
	"filetransfer-retry-attempts":        "download-attempts",
	"trusted-binary-caches":              "trusted-substituters",
}

// Keys returns the names of all keys that are read, sorted.
func Keys() []string {
	return slices.Sorted(maps.Keys(settings))
}

// Aliases returns further names of keys and the keys that they mean.
func Aliases() map[string]string { return maps.Clone(aliases) }

// maxIncludes bounds how deep configuration files include each other.
const maxIncludes = 16

// An Environment looks up a variable, as os.LookupEnv does.
type Environment func(name string) (value string, set bool)

func (env Environment) or(name, otherwise string) string {
	if value, set := env(name); set {
		return value
	}
	return otherwise
}

// nonEmpty returns the first of the variables that has a value.
func (env Environment) nonEmpty(names ...string) string {
	for _, name := range names {
		if value, _ := env(name); value != "" {
			return value
		}
	}
	return ""
}

// Settings are the keys of a configuration with their values.
type Settings struct {
	values map[string]string
	env    Environment
}

// Load reads the configuration as Nix does: the system's nix.conf, our own
// copy-closure.conf beside the system's and the user's files, the user's files, and
// NIX_CONFIG; the later wins. Files that are missing or cannot be read are skipped.
func Load(env Environment) (*Settings, error) {
	s := &Settings{values: make(map[string]string), env: env}
	for _, file := range files(env) {
		if err := s.readFile(file, 0); err != nil {
			return nil, err
		}
	}
	if err := s.parse(env.or("NIX_CONFIG", ""), "NIX_CONFIG", "", 0); err != nil {
		return nil, err
	}
	return s, nil
}

// systemDir is the directory of the system's nix.conf.
func systemDir(env Environment) string {
	if dir := env.nonEmpty("NIX_CONF_DIR"); dir != "" {
		return dir
	}
	return "/etc/nix"
}

// files lists the configuration files, the weakest first.
func files(env Environment) []string {
	list := []string{filepath.Join(systemDir(env), "nix.conf"), "/etc/copy-closure/copy-closure.conf"}
	if user, set := env("NIX_USER_CONF_FILES"); set {
		return append(list, backward(user)...)
	}
	for _, dir := range backward(env.or("XDG_CONFIG_DIRS", "/etc/xdg")) {
		list = append(list, filepath.Join(dir, "nix/nix.conf"))
	}
	config, set := env("XDG_CONFIG_HOME")
	if !set {
		config = filepath.Join(Home(env), ".config")
	}
	ofNix := env.or("NIX_CONFIG_HOME", filepath.Join("/", config, "nix"))
	return append(list, filepath.Join(ofNix, "nix.conf"), filepath.Join("/", config, "copy-closure/copy-closure.conf"))
}

// backward splits a list at its colons and returns the last word first.
func backward(words string) []string {
	list := strings.FieldsFunc(words, func(r rune) bool { return r == ':' })
	slices.Reverse(list)
	return list
}

// Home returns the user's home directory as Nix finds it: HOME, or that of the
// passwd file where HOME is not set, cannot be looked at, or is another user's
// directory. It is "/" where none is known.
func Home(env Environment) string {
	home, set := env("HOME")
	if set {
		var st unix.Stat_t
		switch err := unix.Stat(home, &st); {
		case err == nil && int(st.Uid) == os.Geteuid(), err == unix.ENOENT, err == unix.ENOTDIR:
			return filepath.Join("/", home)
		}
	}
	if u, err := user.LookupId(strconv.Itoa(os.Geteuid())); err == nil && u.HomeDir != "" {
		return u.HomeDir
	}
	return filepath.Join("/", home)
}

// readFile applies a file. One that is missing or cannot be read says nothing.
func (s *Settings) readFile(name string, depth int) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil
	}
	return s.parse(string(text), name, filepath.Dir(name), depth)
}

// parse takes lines of "key = value", "extra-key = value", "include file" and
// "!include file"; "#" begins a comment.
func (s *Settings) parse(text, name, dir string, depth int) error {
	for number, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		if err := s.parseLine(fields(line), dir, depth); err != nil {
			return fmt.Errorf("%s:%d: %w", name, number+1, err)
		}
	}
	return nil
}

// fields splits at what Nix takes for white space.
func fields(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" \t\r\n", r) })
}

func (s *Settings) parseLine(words []string, dir string, depth int) error {
	switch {
	case len(words) == 0:
		return nil
	case len(words) == 2 && words[0] == "include":
		return s.include(words[1], dir, false, depth)
	case len(words) == 2 && words[0] == "!include":
		return s.include(words[1], dir, true, depth)
	case len(words) >= 2 && words[0] != "include" && words[0] != "!include" && words[1] == "=":
		return s.set(words[0], strings.Join(words[2:], " "))
	}
	return fmt.Errorf("%q is not in the form key = value", strings.Join(words, " "))
}

func (s *Settings) include(file, dir string, optional bool, depth int) error {
	if depth == maxIncludes {
		return fmt.Errorf("include %s: more than %d files include each other", file, maxIncludes)
	}
	if !filepath.IsAbs(file) {
		if dir == "" { // of NIX_CONFIG
			return fmt.Errorf("include %s: it is not an absolute path", file)
		}
		file = filepath.Join(dir, file)
	}
	_, err := os.Lstat(file)
	if missing := errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR); missing && !optional {
		return fmt.Errorf("include %s: there is no such file", file)
	}
	return s.readFile(file, depth+1)
}

// set gives a key its value; "extra-" adds to a list. Keys that are not read are
// ignored.
func (s *Settings) set(name, value string) error {
	base, extra := strings.CutPrefix(name, "extra-")
	key := base
	if alias, ok := aliases[base]; ok {
		key = alias
	}
	known, ok := settings[key]
	if !ok || extra && known.form != list {
		return nil
	}
	var err error
	switch known.form {
	case boolean:
		_, err = ParseBool(value)
	case number:
		_, err = parseNumber(value)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if extra {
		value = strings.TrimSpace(s.text(key) + " " + value)
	}
	s.values[key] = value
	return nil
}

// ParseBool reads a boolean in each of the spellings that Nix knows.
func ParseBool(text string) (bool, error) {
	switch text {
	case "true", "yes", "1":
		return true, nil
	case "false", "no", "0":
		return false, nil
	}
	return false, fmt.Errorf("%q is not true, yes, 1, false, no or 0", text)
}

// text returns a key's value or its default.
func (s *Settings) text(key string) string {
	if value, ok := s.values[key]; ok {
		return value
	}
	return settings[key].standard
}

// words returns the value of a list.
func (s *Settings) words(key string) []string { return strings.Fields(s.text(key)) }

// flag returns the value of a boolean, which set has checked.
func (s *Settings) flag(key string) bool {
	value, _ := ParseBool(s.text(key))
	return value
}

// RequireSignatures reports require-sigs, which is true unless switched off.
func (s *Settings) RequireSignatures() bool { return s.flag("require-sigs") }

// AllowSymlinkedStore reports whether the store's directory, or one above it, may be a
// symbolic link: allow-symlinked-store, else NIX_IGNORE_SYMLINK_STORE.
func (s *Settings) AllowSymlinkedStore() bool {
	if _, set := s.values["allow-symlinked-store"]; set {
		return s.flag("allow-symlinked-store")
	}
	return s.env.nonEmpty("NIX_IGNORE_SYMLINK_STORE") == "1"
}

// Store returns the URI of the store to use where nobody names one: the key store,
// else NIX_REMOTE, else "auto".
func (s *Settings) Store() string {
	if uri := s.text("store"); uri != "" {
		return uri
	}
	if uri := s.env.nonEmpty("NIX_REMOTE"); uri != "" {
		return uri
	}
	return "auto"
}

// TrustedKeys returns trusted-public-keys and the public halves of those
// secret-key-files that can be read. Of several keys with one name the first is
// trusted, as in Nix.
func (s *Settings) TrustedKeys() (nix.TrustedKeys, error) {
	keys, err := nix.NewTrustedKeys(s.words("trusted-public-keys")...)
	if err != nil {
		return nil, fmt.Errorf("trusted-public-keys: %w", err)
	}
	for _, file := range s.words("secret-key-files") {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // as Nix does: usually it is root's alone
		}
		key, err := nix.ParseSecretKey(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		keys.Add(key.Public())
	}
	return keys, nil
}

package transport

import (
	"bufio"
	"bytes"
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

	"github.com/kballard/go-shellquote"
	"github.com/kevinburke/ssh_config"
)

const systemConfig = "/etc/ssh/ssh_config"

// includeDepth is how deep files may include each other, as in OpenSSH.
const includeDepth = 16

// otherNames are further names of settings, in lower case.
var otherNames = map[string]string{
	"challengeresponseauthentication": "kbdinteractiveauthentication",
	"hostbasedkeytypes":               "hostbasedacceptedalgorithms",
	"keepalive":                       "tcpkeepalive",
	"pubkeyacceptedkeytypes":          "pubkeyacceptedalgorithms",
	"skeyauthentication":              "kbdinteractiveauthentication",
	"smartcarddevice":                 "pkcs11provider",
	"tisauthentication":               "kbdinteractiveauthentication",
}

// repeatedKeys may stand several times; of all others the first one counts.
var repeatedKeys = map[string]bool{
	"certificatefile": true, "identityfile": true, "sendenv": true,
}

// plainSettings reads the configuration without the help of ssh. Conditions beyond
// Host patterns are refused by name: half understood they would lead elsewhere.
func plainSettings(q query) (settings, error) {
	files := []string{filepath.Join(homeDir(), ".ssh", "config"), systemConfig}
	s := settings{}
	options, err := parseFlags(q.argv())
	if err != nil {
		return nil, err
	}
	for _, f := range options {
		if f.letter == 'F' {
			files = []string{f.value}
		} else if key, value := f.setting(); key != "" {
			s.merge(key, []string{value})
		}
	}
	for i, file := range files {
		if file == "none" {
			continue
		}
		required := len(files) == 1 && i == 0
		if err := s.addFile(file, q.dest.Host, required); err != nil {
			return nil, err
		}
	}
	s.addDefaults(q.dest.Host)
	return s, nil
}

// merge adds values that were found after those already there.
func (s settings) merge(key string, values []string) {
	if name, ok := otherNames[key]; ok {
		key = name
	}
	switch {
	case key == "setenv": // several on a line, where ssh -G prints one
		for _, value := range values {
			pairs, err := shellquote.Split(value)
			if err != nil {
				pairs = strings.Fields(value)
			}
			s[key] = append(s[key], pairs...)
		}
	case repeatedKeys[key]:
		s[key] = append(s[key], values...)
	case len(s[key]) == 0 && len(values) > 0:
		s[key] = values[:1]
	}
}

func (s settings) addFile(file, host string, required bool) error {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && !required {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ssh configuration: %w", err)
	}
	keys := map[string]bool{}
	if err := checkPlain(file, data, 0, keys); err != nil {
		return err
	}
	config, err := ssh_config.DecodeBytes(data)
	if err != nil {
		return fmt.Errorf("ssh configuration %s: %w", file, err)
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		values, err := config.GetAll(host, key)
		if err != nil {
			return fmt.Errorf("ssh configuration %s: %w", file, err)
		}
		s.merge(key, values)
	}
	return nil
}

// checkPlain refuses what the parser is known to misread, and adds the names of all
// settings, for whatever hosts, to keys.
func checkPlain(file string, data []byte, depth int, keys map[string]bool) error {
	if depth > includeDepth {
		return fmt.Errorf("ssh configuration %s: too many levels of Include", file)
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for number := 1; lines.Scan(); number++ {
		key, value := splitSetting(lines.Text())
		switch key {
		case "", "host":
		case "match", "canonicalizehostname":
			if value == "no" {
				continue
			}
			return fmt.Errorf("ssh configuration %s line %d: %s is understood only by OpenSSH's ssh, which is not installed", file, number, strings.Fields(lines.Text())[0])
		case "include":
			if err := checkIncluded(file, value, depth, keys); err != nil {
				return err
			}
		default:
			if key[0] != '#' {
				keys[key] = true
			}
		}
	}
	return lines.Err()
}

func checkIncluded(file, value string, depth int, keys map[string]bool) error {
	for _, pattern := range strings.Fields(value) {
		pattern = expandHome(strings.Trim(pattern, `"`))
		if !filepath.IsAbs(pattern) {
			if strings.HasPrefix(file, filepath.Dir(systemConfig)+"/") {
				return fmt.Errorf("ssh configuration %s: Include %s without a directory is understood only by OpenSSH's ssh, which is not installed", file, pattern)
			}
			pattern = filepath.Join(homeDir(), ".ssh", pattern)
		}
		found, err := filepath.Glob(pattern)
		if err != nil {
			return fmt.Errorf("ssh configuration %s: Include %s: %w", file, pattern, err)
		}
		for _, name := range found {
			data, err := os.ReadFile(name)
			if err != nil {
				return fmt.Errorf("ssh configuration: %w", err)
			}
			if err := checkPlain(name, data, depth+1, keys); err != nil {
				return err
			}
		}
	}
	return nil
}

// addDefaults fills in what ssh -G would print where nothing is set.
func (s settings) addDefaults(host string) {
	s.merge("hostname", []string{host})
	s["hostname"] = []string{strings.ReplaceAll(s.first("hostname"), "%h", host)}
	if me, err := user.Current(); err == nil {
		s.merge("user", []string{me.Username})
	}
	s.merge("port", []string{strconv.Itoa(defaultPort)})
	s.merge("stricthostkeychecking", []string{"ask"})
	s.merge("userknownhostsfile", []string{"~/.ssh/known_hosts ~/.ssh/known_hosts2"})
	s.merge("globalknownhostsfile", []string{"/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"})
	if len(s["identityfile"]) == 0 {
		s["identityfile"] = []string{"~/.ssh/id_rsa", "~/.ssh/id_ecdsa", "~/.ssh/id_ecdsa_sk", "~/.ssh/id_ed25519", "~/.ssh/id_ed25519_sk"}
	}
	for _, key := range []string{"pubkeyauthentication", "passwordauthentication", "kbdinteractiveauthentication"} {
		s.merge(key, []string{"yes"})
	}
}

// homeDir returns the home directory by the password database, as OpenSSH finds
// it, and only without an entry there by $HOME.
func homeDir() string {
	if me, err := user.Current(); err == nil {
		return me.HomeDir
	}
	return os.Getenv("HOME")
}

// expandHome replaces a leading ~ or ~user.
func expandHome(path string) string {
	if !strings.HasPrefix(path, "~") {
		return path
	}
	name, rest, _ := strings.Cut(path[1:], "/")
	if name == "" {
		return filepath.Join(homeDir(), rest)
	}
	if other, err := user.Lookup(name); err == nil {
		return filepath.Join(other.HomeDir, rest)
	}
	return path
}

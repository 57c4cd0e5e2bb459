package transport

import (
	"fmt"
	"math"
	"net"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	defaultPort           = 22
	defaultConnectTimeout = 30 * time.Second
	defaultAliveInterval  = 15 * time.Second
	defaultAliveCount     = 3
	defaultPrompts        = 3
)

// A hostConfig is what the built-in client needs to know about a host.
type hostConfig struct {
	alias    string // as the user wrote it
	hostName string
	port     int
	user     string

	hostKeyAlias     string // empty: the host name counts
	userKnownHosts   []string
	globalKnownHosts []string
	strictHostKeys   string // yes, no, ask or accept-new
	hashKnownHosts   bool

	identityFiles    []string
	ownIdentities    bool // the user named the files, they are not the default ones
	identitiesOnly   bool
	certificateFiles []string
	agent            string   // its socket; empty: none
	methods          []string // of logging in, best first
	prompts          int      // how often a password is asked for
	batch            bool     // never ask

	jumps        []string // hosts on the way, nearest first
	proxyCommand string   // expanded; empty: none

	connectTimeout time.Duration
	aliveInterval  time.Duration
	aliveCount     int
	network        string // tcp, tcp4 or tcp6
	bindAddress    string
	rekeyBytes     uint64 // 0: as the library thinks best

	ciphers, kexAlgorithms, macs, hostKeyAlgorithms []string // best first
	anyCipherOrder                                  bool     // the user did not choose the order of the ciphers
	pubkeyAlgorithms                                []string // of log-ins, with those of certificates
	caSignatures                                    []string // by which a host certificate may be signed
	minRSASize                                      int      // in bits

	environ []string // KEY=VALUE, offered to the host
}

func (c *hostConfig) address() string {
	return net.JoinHostPort(c.hostName, strconv.Itoa(c.port))
}

// knownHostsName is how known_hosts calls the host.
func (c *hostConfig) knownHostsName() string {
	if c.hostKeyAlias != "" {
		return c.hostKeyAlias
	}
	return knownHostsName(c.hostName, c.port)
}

// newHostConfig reads s. A reason that is not empty says what in s the built-in
// client cannot honour. defaults may be nil.
func newHostConfig(alias string, s, defaults settings) (c *hostConfig, reason string, err error) {
	c = &hostConfig{
		alias:          alias,
		hostName:       strings.Trim(s.first("hostname"), "[]"),
		user:           s.first("user"),
		hostKeyAlias:   strings.ToLower(s.first("hostkeyalias")),
		strictHostKeys: strictness(s.first("stricthostkeychecking")),
		hashKnownHosts: s.yes("hashknownhosts"),
		identitiesOnly: s.yes("identitiesonly"),
		ownIdentities:  !slices.Equal(s["identityfile"], defaults["identityfile"]),
		batch:          s.yes("batchmode"),
		connectTimeout: defaultConnectTimeout,
		aliveInterval:  defaultAliveInterval,
		aliveCount:     defaultAliveCount,
		prompts:        defaultPrompts,
		bindAddress:    s.first("bindaddress"),
		environ:        sentEnviron(s),
	}
	if c.port, err = parsePort(s.first("port")); err != nil {
		return nil, "", err
	}
	c.readNumbers(s)
	c.readMethods(s)
	c.readNetwork(s)
	if reason = unsupported(s, defaults); reason == "" {
		reason = c.readAlgorithms(s, defaults)
	}
	if e := c.readFiles(s); reason == "" && e != nil {
		reason = e.Error()
	}
	if e := c.readProxy(s); reason == "" && e != nil {
		reason = e.Error()
	}
	return c, reason, nil
}

// strictness gives the values of StrictHostKeyChecking one name each.
func strictness(value string) string {
	switch value = strings.ToLower(value); value {
	case "yes", "true":
		return "yes"
	case "no", "false", "off":
		return "no"
	case "accept-new":
		return value
	}
	return "ask"
}

func (c *hostConfig) readNumbers(s settings) {
	if n, ok := seconds(s.first("connecttimeout")); ok {
		c.connectTimeout = n
	}
	if n, ok := seconds(s.first("serveraliveinterval")); ok {
		c.aliveInterval = n
	}
	if n, err := strconv.Atoi(s.first("serveralivecountmax")); err == nil && n > 0 {
		c.aliveCount = n
	}
	if n, err := strconv.Atoi(s.first("numberofpasswordprompts")); err == nil && n >= 0 {
		c.prompts = n
	}
	c.rekeyBytes, _ = rekeyLimit(s.first("rekeylimit"))
}

// rekeyLimit reads RekeyLimit: bytes, perhaps with a unit, and a time that must be
// none, as the built-in client does not watch it.
func rekeyLimit(s string) (bytes uint64, ok bool) {
	fields := strings.Fields(strings.ToLower(s))
	if len(fields) > 2 || len(fields) == 2 && fields[1] != "0" && fields[1] != "none" {
		return 0, false
	}
	if len(fields) == 0 || fields[0] == "default" || fields[0] == "none" {
		return 0, true
	}
	size, unit := fields[0], uint64(1)
	if i := strings.IndexByte("kmg", size[len(size)-1]); i >= 0 {
		size, unit = size[:len(size)-1], 1<<(10*(i+1))
	}
	n, err := strconv.ParseUint(size, 10, 63)
	return n * unit, err == nil && n <= math.MaxInt64/unit
}

// seconds reads a positive time: a number of seconds, or with the units of sshd.
func seconds(s string) (time.Duration, bool) {
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(n) * time.Second, n > 0
	}
	d, err := time.ParseDuration(strings.ToLower(s))
	return d, err == nil && d > 0
}

func (c *hostConfig) readNetwork(s settings) {
	switch s.first("addressfamily") {
	case "inet":
		c.network = "tcp4"
	case "inet6":
		c.network = "tcp6"
	default:
		c.network = "tcp"
	}
}

// readMethods keeps OpenSSH's order, of the methods that the client has.
func (c *hostConfig) readMethods(s settings) {
	allowed := map[string]bool{
		"publickey":            !s.off("pubkeyauthentication"),
		"keyboard-interactive": !s.off("kbdinteractiveauthentication") && c.prompts > 0,
		"password":             !s.off("passwordauthentication") && c.prompts > 0,
	}
	order := []string{"publickey", "keyboard-interactive", "password"}
	if preferred := s.first("preferredauthentications"); preferred != "" {
		order = strings.Split(preferred, ",")
	}
	for _, method := range order {
		if allowed[method] && !slices.Contains(c.methods, method) {
			c.methods = append(c.methods, method)
		}
	}
}

func (c *hostConfig) readFiles(s settings) error {
	var err error
	each := func(values []string) []string {
		var all []string
		for _, value := range values {
			name, e := c.expand(value)
			if e != nil && err == nil {
				err = e
			}
			if value != "none" && e == nil {
				all = append(all, name)
			}
		}
		return all
	}
	c.identityFiles = each(s["identityfile"])
	c.certificateFiles = each(s["certificatefile"])
	c.userKnownHosts = each(words(s.first("userknownhostsfile")))
	c.globalKnownHosts = each(words(s.first("globalknownhostsfile")))
	switch value := s.first("identityagent"); value {
	case "none":
	case "", "SSH_AUTH_SOCK":
		c.agent = os.Getenv("SSH_AUTH_SOCK")
	default:
		if name, ok := strings.CutPrefix(value, "$"); ok && !strings.HasPrefix(name, "{") {
			c.agent = os.Getenv(name)
		} else if files := each([]string{value}); len(files) == 1 {
			c.agent = files[0]
		}
	}
	return err
}

// words splits a list of file names, of which those with spaces are quoted.
func words(s string) []string {
	var all []string
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		var word string
		if s[0] == '"' {
			word, s, _ = strings.Cut(s[1:], `"`)
		} else if i := strings.IndexAny(s, " \t"); i >= 0 {
			word, s = s[:i], s[i:]
		} else {
			word, s = s, ""
		}
		all = append(all, word)
	}
	return all
}

func (c *hostConfig) readProxy(s settings) error {
	if command := s.first("proxycommand"); command != "" && command != "none" {
		var err error
		c.proxyCommand, err = c.expandTokens("ProxyCommand", command)
		return err
	}
	if jump := s.first("proxyjump"); jump != "" && jump != "none" {
		c.jumps = strings.Split(jump, ",")
	}
	return nil
}

// sentEnviron returns what SetEnv and SendEnv send; the former counts.
func sentEnviron(s settings) []string {
	var all []string
	set := map[string]bool{}
	add := func(pair string) {
		name, _, ok := strings.Cut(pair, "=")
		if ok && !set[name] {
			set[name] = true
			all = append(all, pair)
		}
	}
	for _, pair := range s["setenv"] {
		add(pair)
	}
	for _, value := range s["sendenv"] {
		for _, pattern := range strings.Fields(value) {
			for _, pair := range os.Environ() {
				name, _, _ := strings.Cut(pair, "=")
				if ok, err := path.Match(pattern, name); ok && err == nil {
					add(pair)
				}
			}
		}
	}
	return all
}

// expand replaces what file names may contain: ~, %-tokens and ${NAME}.
func (c *hostConfig) expand(name string) (string, error) {
	name = expandHome(name)
	for {
		before, rest, ok := strings.Cut(name, "${")
		if !ok {
			break
		}
		key, after, ok := strings.Cut(rest, "}")
		value, set := os.LookupEnv(key)
		if !ok || !set {
			return "", fmt.Errorf("the file name %s uses an unknown variable", name)
		}
		name = before + value + after
	}
	name, err := c.expandTokens("file name", name)
	if err != nil {
		return "", err
	}
	return filepath.Clean(name), nil
}

// expandTokens replaces the %-tokens of ssh_config(5).
func (c *hostConfig) expandTokens(what, text string) (string, error) {
	if !strings.Contains(text, "%") {
		return text, nil
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '%' {
			b.WriteByte(text[i])
			continue
		}
		i++
		value, ok := "", false
		if i < len(text) {
			value, ok = c.token(text[i])
		}
		if !ok {
			return "", fmt.Errorf("the %s %s uses an unknown token", what, text)
		}
		b.WriteString(value)
	}
	return b.String(), nil
}

func (c *hostConfig) token(letter byte) (string, bool) {
	switch letter {
	case '%':
		return "%", true
	case 'h':
		return c.hostName, true
	case 'n':
		return c.alias, true
	case 'p':
		return strconv.Itoa(c.port), true
	case 'r':
		return c.user, true
	case 'd':
		return homeDir(), true
	case 'k':
		if c.hostKeyAlias != "" {
			return c.hostKeyAlias, true
		}
		return c.alias, true
	case 'i':
		return strconv.Itoa(os.Getuid()), true
	case 'u':
		me, err := user.Current()
		if err != nil {
			return "", false
		}
		return me.Username, true
	case 'l', 'L':
		name, err := os.Hostname()
		if letter == 'L' {
			name, _, _ = strings.Cut(name, ".")
		}
		return name, err == nil
	}
	return "", false
}

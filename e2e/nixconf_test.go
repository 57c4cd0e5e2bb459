package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/nixconf"
)

// TestNixConf compares how we read configuration files with what each real Nix makes of
// the same files.
func TestNixConf(t *testing.T) {
	for _, nix := range realNixes(t) {
		t.Run(nix.version, func(t *testing.T) {
			standard, err := nix.config(nil)
			if err != nil {
				t.Fatal(err)
			}
			g := &confGenerator{Rand: rand.New(rand.NewPCG(102, 4))}
			refused := 0
			for i := range 25 {
				g.generate(t, t.TempDir())
				theirs, theirErr := nix.config(g.env)
				ours, ourErr := nixconf.Load(lookupIn(g.env))
				if (theirErr == nil) != (ourErr == nil) {
					t.Fatalf("case %d: Nix says %v, we say %v\n%s", i, theirErr, ourErr, g)
				}
				if theirErr != nil {
					refused++
					continue
				}
				if diff := confDifferences(ours, theirs, standard); diff != "" {
					t.Fatalf("case %d: %s\n%s", i, diff, g)
				}
			}
			if refused == 0 || refused > 15 {
				t.Errorf("Nix refuses %d of 25 cases: the generator is of no use", refused)
			}
		})
	}
}

// A realNix is an installed version of Nix.
type realNix struct{ program, version string }

// realNixes returns the Nix in PATH and those of newer Debian suites.
func realNixes(t *testing.T) []realNix {
	t.Helper()
	harness.Need(t, "nix")
	version, err := harness.NixVersion("nix")
	if err != nil {
		t.Fatal(err)
	}
	all := []realNix{{"nix", version}}
	for _, newer := range harness.NewerNix(t) {
		all = append(all, realNix{newer.Dir + "/nix", newer.Version})
	}
	return all
}

// config returns the values that Nix has for its settings in an environment.
func (n realNix) config(env map[string]string) (map[string]any, error) {
	words := []string{"--extra-experimental-features", "nix-command", "config", "show", "--json"}
	if strings.HasPrefix(n.version, "2.8.") {
		words = append(words[:2], "show-config", "--json")
	}
	cmd := exec.Command(n.program, words...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	for name, value := range env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	if err != nil {
		return nil, err
	}
	var all map[string]struct{ Value any }
	if err := json.Unmarshal(out, &all); err != nil {
		return nil, err
	}
	values := make(map[string]any, len(all))
	for name, setting := range all {
		values[name] = setting.Value
	}
	return values, nil
}

func lookupIn(env map[string]string) nixconf.Environment {
	return func(name string) (string, bool) { value, set := env[name]; return value, set }
}

// confDifferences names what we read otherwise than Nix. Where we have a default of our
// own, nothing must be set there either.
func confDifferences(ours *nixconf.Settings, theirs, standard map[string]any) string {
	connections, connectionsSet := ours.HTTPConnections()
	numbers := map[string]struct {
		value int
		set   bool
	}{
		"connect-timeout":          seconds(ours.ConnectTimeout()),
		"stalled-download-timeout": seconds(ours.StallTimeout()),
		"http-connections":         {connections, connectionsSet},
		"download-attempts":        {ours.DownloadAttempts(), ours.DownloadAttempts() != 0},
	}
	var diff []string
	for name, n := range numbers {
		want := theirs[name]
		if !n.set {
			want = standard[name]
		}
		if got := theirs[name]; got != want || n.set && got != float64(n.value) && (name != "download-attempts" || got != 0.0) {
			diff = append(diff, fmt.Sprintf("%s: we have %+v, Nix %v", name, n, got))
		}
	}
	keys, err := ours.TrustedKeys()
	if err != nil {
		return err.Error()
	}
	others := map[string]any{
		"require-sigs":        ours.RequireSignatures(),
		"http2":               ours.HTTP2(),
		"store":               ours.Store(),
		"netrc-file":          ours.NetrcFile(),
		"trusted-public-keys": slices.Sorted(maps.Keys(keys)),
	}
	if theirs["substitute"] == true {
		others["substituters"] = ours.Substituters()
		others["trusted-substituters"] = ours.TrustedSubstituters()
	} else if got := ours.Substituters(); got != nil {
		diff = append(diff, fmt.Sprintf("substitute is off for Nix, we have %q", got))
	}
	if file, known := theirs["ssl-cert-file"]; known && (file != standard["ssl-cert-file"] || ours.CertificateFile() != "") {
		others["ssl-cert-file"] = ours.CertificateFile()
	}
	for name, got := range others {
		if want := theirs[name]; inWords(name, got) != inWords(name, want) {
			diff = append(diff, fmt.Sprintf("%s: we have %v, Nix %v", name, got, want))
		}
	}
	slices.Sort(diff)
	return strings.Join(diff, "\n")
}

func seconds(d time.Duration) (n struct {
	value int
	set   bool
}) {
	n.set = d != 0
	n.value = int(max(d, 0) / time.Second)
	return n
}

// inWords makes values comparable: of keys only the names count, and trusted-substituters
// are a set.
func inWords(name string, value any) string {
	words, isList := value.([]string)
	if list, ok := value.([]any); ok {
		isList = true
		for _, word := range list {
			words = append(words, fmt.Sprint(word))
		}
	}
	switch {
	case name == "store" && value == "":
		return "auto"
	case name == "store": // newer ones write /DIR as local:///DIR
		return strings.TrimPrefix(fmt.Sprint(value), "local://")
	case !isList:
		return fmt.Sprint(value)
	}
	words = slices.Clone(words)
	switch name {
	case "trusted-public-keys":
		for i, word := range words {
			words[i], _, _ = strings.Cut(word, ":")
		}
		fallthrough
	case "trusted-substituters":
		slices.Sort(words)
		words = slices.Compact(words)
	}
	return strings.Join(words, " ")
}

// A confGenerator makes up configuration files, and an environment that leads to them.
type confGenerator struct {
	*rand.Rand
	dir   string
	env   map[string]string
	files map[string]string
}

func (g *confGenerator) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(g.env)) {
		fmt.Fprintf(&b, "%s=%q\n", name, g.env[name])
	}
	for _, name := range slices.Sorted(maps.Keys(g.files)) {
		fmt.Fprintf(&b, "%s: %q\n", name, g.files[name])
	}
	return b.String()
}

func (g *confGenerator) often() bool  { return g.IntN(3) > 0 }
func (g *confGenerator) rarely() bool { return g.IntN(8) == 0 }

func oneOf[T any](g *confGenerator, list ...T) T { return list[g.IntN(len(list))] }

func (g *confGenerator) generate(t *testing.T, dir string) {
	t.Helper()
	g.dir, g.files = dir, make(map[string]string)
	g.env = map[string]string{"NIX_CONF_DIR": dir + "/etc", "HOME": dir + "/home"}
	for _, variable := range [][2]string{ // no map, whose order would be another each time
		{"XDG_CONFIG_HOME", dir + "/xdg"},
		{"XDG_CONFIG_DIRS", oneOf(g, dir+"/x1:"+dir+"/x2", "", ":"+dir+"/x1:", dir+"/none:"+dir+"/x2")},
		{"NIX_USER_CONF_FILES", oneOf(g, dir+"/u1:"+dir+"/u2", "", dir+"/none::"+dir+"/u2")},
		{"NIX_REMOTE", oneOf(g, "", "daemon", "/srv/remote")},
		{"NIX_SSL_CERT_FILE", dir + "/nix.pem"},
		{"SSL_CERT_FILE", dir + "/any.pem"},
		{"NIX_CONFIG", g.text(1)},
	} {
		name, value := variable[0], variable[1]
		if g.rarely() || name == "XDG_CONFIG_DIRS" && g.often() {
			g.env[name] = value
		}
	}
	if g.rarely() {
		g.env["HOME"] = oneOf(g, dir+"/nobody", dir+"/u1/below", "/dev/null")
	}
	for _, name := range []string{"etc/nix.conf", "etc/more.conf", "home/.config/nix/nix.conf", "xdg/nix/nix.conf", "x1/nix/nix.conf", "x2/nix/nix.conf", "u1", "u2"} {
		g.file(t, filepath.Join(dir, name))
	}
}

// file makes a file, or what cannot be read in its place, or nothing.
func (g *confGenerator) file(t *testing.T, name string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(name), 0o755)
	switch {
	case err != nil || g.rarely():
	case g.rarely():
		g.files[name] = "(a directory)"
		err = os.Mkdir(name, 0o755)
	case g.rarely():
		g.files[name] = "(a link to nothing)"
		err = os.Symlink("nothing", name)
	default:
		g.files[name] = g.text(1 + g.IntN(4))
		err = os.WriteFile(name, []byte(g.files[name]), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (g *confGenerator) text(lines int) string {
	var b strings.Builder
	for range lines {
		b.WriteString(g.line() + oneOf(g, "\n", "\n", " # comment\n", "\r\n", "\n\n"))
	}
	return b.String()
}

func (g *confGenerator) line() string {
	if g.IntN(90) == 0 {
		return oneOf(g, "http2", "http2 no", "include", "= yes", "include = x", "http2=yes", "!include a b", "include "+g.dir+"/missing")
	}
	if g.rarely() {
		return oneOf(g, "include more.conf", "!include more.conf", "!include missing.conf", "include "+g.dir+"/etc/more.conf", "!include "+g.dir+"/u1/below")
	}
	const keyA, keyB = "a-1:1XqT4L74s86NxgO2ai+9HKW/BlVM94Y7vC226KwV6xM=", "b-1:1XqT4L74s86NxgO2ai+9HKW/BlVM94Y7vC226KwV6xM="
	key := oneOf(g, "require-sigs", "http2", "substitute", "build-use-substitutes", "connect-timeout", "stalled-download-timeout",
		"download-attempts", "http-connections", "binary-caches-parallel-connections", "substituters", "binary-caches",
		"trusted-substituters", "trusted-binary-caches", "trusted-public-keys", "binary-cache-public-keys", "store", "netrc-file", "ssl-cert-file", "unheard-of")
	var value string
	switch key {
	case "require-sigs", "http2", "substitute", "build-use-substitutes":
		value = oneOf(g, "true", "false", "yes", "no", "1", "0")
		if g.IntN(20) == 0 {
			value = oneOf(g, "True", "on", "off", "", "yes no", "2")
		}
	case "connect-timeout", "stalled-download-timeout", "download-attempts", "http-connections", "binary-caches-parallel-connections":
		value = oneOf(g, "0", "1", "7", "300", "007")
		if g.IntN(20) == 0 {
			value = oneOf(g, "-1", "", "x", "1 2", "0x1")
		}
	case "trusted-public-keys", "binary-cache-public-keys":
		value = oneOf(g, "", keyA, keyB, keyA+"   "+keyB, keyB+"\t"+keyA)
	case "store":
		value = oneOf(g, "auto", "daemon", "/srv/store", "local")
	case "netrc-file", "ssl-cert-file":
		value = g.dir + oneOf(g, "/a", "/b")
	default:
		value = oneOf(g, "", "https://a.example", "https://a.example  https://b.example", "file:///c https://a.example")
	}
	return oneOf(g, "", "", "", "extra-") + key + oneOf(g, " = ", " =  ", "\t=\t", " = ") + value
}

// Package e2e_test runs scripts against a real OpenSSH server and a real Nix.
// See testdata/README.md for the commands that the scripts can use.
package e2e_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/copy-closure/copy-closure/e2e/harness"
)

const module = "github.com/copy-closure/copy-closure"

// TestStock runs scripts that use other people's programs only: they show that
// the harness does what the scripts about our own program rely on.
func TestStock(t *testing.T) { runScripts(t, "testdata/stock", "") }

// TestNewerNix runs those scripts, and some about our own program, with the Nix of newer
// Debian suites in place of the system's.
func TestNewerNix(t *testing.T) {
	product := buildProduct(t)
	for _, nix := range harness.NewerNix(t) {
		t.Run(nix.Version, func(t *testing.T) {
			t.Setenv("PATH", nix.Dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
			t.Run("stock", func(t *testing.T) { runScripts(t, "testdata/stock", "") })
			t.Run("script", func(t *testing.T) { runScripts(t, "testdata/script", product, newerNixScripts...) })
		})
	}
}

// newerNixScripts are those in testdata/script that have a Nix at one end and
// copy-closure at the other, for each protocol and direction.
var newerNixScripts = []string{
	"push", "pull", "profile-push", "ssh-ng-push", "ssh-ng-pull", "ssh-ng-roots",
	"stock-clients", "stock-clients-ng", "multiuser-push", "ssh-ng-untrusted", "fetch", "cache-push", "cache-serve",
}

// TestScript runs the scripts about copy-closure.
func TestScript(t *testing.T) { runScripts(t, "testdata/script", buildProduct(t)) }

// TestTiming runs the scripts that measure, when the others are done.
func TestTiming(t *testing.T) { runScripts(t, "testdata/timing", buildProduct(t)) }

// runScripts runs the named scripts in dir, or all.
func runScripts(t *testing.T, dir, product string, names ...string) {
	harness.Need(t, "ssh", "sshd", "nix-store", "nix", "nix-copy-closure")
	var files []string
	for _, name := range names {
		files = append(files, filepath.Join(dir, name+".txtar"))
	}
	if files != nil {
		dir = ""
	}
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		Files:               files,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               func(env *testscript.Env) error { return setUp(env, product) },
		Condition:           condition,
		Cmds:                commands,
	})
}

// buildProduct builds copy-closure and returns the program's file, which every user
// may read. $COPY_CLOSURE_BINARY is used instead if set.
func buildProduct(t *testing.T) string {
	t.Helper()
	if file := os.Getenv("COPY_CLOSURE_BINARY"); file != "" {
		return file
	}
	file := filepath.Join(t.TempDir(), "copy-closure")
	cmd := exec.Command("go", "build", "-o", file, module)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for _, dir := range []string{filepath.Dir(file), filepath.Dir(filepath.Dir(file))} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return file
}

// setUp gives a script a home of its own, a Nix configuration that does not
// depend on the machine, and our program first in its PATH, as $bin.
func setUp(env *testscript.Env, product string) error {
	// Other users than the one who runs the tests must be able to enter.
	for _, dir := range []string{env.WorkDir, filepath.Dir(env.WorkDir)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{"home", "bin"} {
		if err := os.Mkdir(filepath.Join(env.WorkDir, dir), 0o755); err != nil {
			return err
		}
	}
	bin := filepath.Join(env.WorkDir, "bin")
	if product != "" {
		if err := os.Symlink(product, filepath.Join(bin, "copy-closure")); err != nil {
			return err
		}
	}
	conf := filepath.Join(env.WorkDir, "conf")
	if err := harness.WriteNixConf(conf); err != nil {
		return err
	}
	env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
	env.Setenv("NIX_CONF_DIR", conf)
	env.Setenv("NIX_USER_CONF_FILES", "")
	env.Setenv("bin", bin)
	env.Setenv("PATH", bin+string(filepath.ListSeparator)+env.Getenv("PATH"))
	env.Values[stateKey{}] = newState(env)
	return nil
}

// condition knows [root], [apt], [ipv6] and [nix:VERSION]: the Nix in PATH is that version
// or a newer one.
func condition(name string) (bool, error) {
	if version, ok := strings.CutPrefix(name, "nix:"); ok {
		return nixIsAtLeast(version)
	}
	switch name {
	case "root":
		return os.Getuid() == 0, nil
	case "apt":
		_, err := exec.LookPath("apt-get")
		return err == nil, nil
	case "ipv6":
		l, err := net.Listen("tcp", "[::1]:0")
		if err == nil {
			l.Close()
		}
		return err == nil, nil
	}
	return false, fmt.Errorf("unknown condition [%s]", name)
}

func nixIsAtLeast(version string) (bool, error) {
	is, err := harness.NixVersion("nix-store")
	if err != nil {
		return false, err
	}
	have, want := [2]int{}, [2]int{}
	if _, err := fmt.Sscanf(is, "%d.%d", &have[0], &have[1]); err != nil {
		return false, fmt.Errorf("version %q: %w", is, err)
	}
	if _, err := fmt.Sscanf(version, "%d.%d", &want[0], &want[1]); err != nil {
		return false, fmt.Errorf("version %q: %w", version, err)
	}
	return slices.Compare(have[:], want[:]) >= 0, nil
}

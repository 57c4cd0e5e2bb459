// Package e2e_test runs scripts against a real OpenSSH server and a real Nix.
// See testdata/README.md for the commands that the scripts can use.
package e2e_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/copy-closure/copy-closure/e2e/harness"
)

const module = "github.com/copy-closure/copy-closure"

// TestStock runs scripts that use other people's programs only: they show that
// the harness does what the scripts about our own program rely on.
func TestStock(t *testing.T) { runScripts(t, "testdata/stock", "") }

// TestScript runs the scripts about copy-closure.
func TestScript(t *testing.T) { runScripts(t, "testdata/script", buildProduct(t)) }

// TestTiming runs the scripts that measure, when the others are done.
func TestTiming(t *testing.T) { runScripts(t, "testdata/timing", buildProduct(t)) }

func runScripts(t *testing.T, dir, product string) {
	harness.Need(t, "ssh", "sshd", "nix-store", "nix", "nix-copy-closure")
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
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

// condition knows [root], [apt] and [ipv6].
func condition(name string) (bool, error) {
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

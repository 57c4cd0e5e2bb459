package harness

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// NixVersion returns the version that a program of Nix reports. Root's programs would
// create /nix if they might use it.
func NixVersion(program string) (string, error) {
	cmd := exec.Command(program, "--version")
	cmd.Env = append(os.Environ(), "NIX_REMOTE=daemon")
	out, err := cmd.Output()
	words := strings.Fields(string(out))
	if err != nil || len(words) == 0 {
		return "", fmt.Errorf("%s --version: %q: %w", program, out, err)
	}
	return words[len(words)-1], nil
}

// A Nix is an installation of Nix's programs.
type Nix struct {
	Version string
	Dir     string // has the programs
}

//go:embed newer-nix.sh
var newerNixScript string

// NewerNix returns the versions of Nix that newer Debian suites have, unpacked beside
// the system. They are downloaded on first use, and kept.
func NewerNix(t testing.TB) []Nix {
	t.Helper()
	Need(t, "apt-get", "dpkg-deb", "flock")
	cmd := exec.Command("sh", "-c", newerNixScript)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		Unavailable(t, fmt.Errorf("unpack newer versions of Nix: %w", err))
	}
	var found []Nix
	for line := range strings.Lines(string(out)) {
		t.Log("Nix ", strings.TrimSpace(line))
		version, rest, _ := strings.Cut(line, " ")
		dir, _, _ := strings.Cut(rest, " ")
		found = append(found, Nix{version, dir})
	}
	return found
}

package harness

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Need skips the test when one of the programs is missing, and fails it where
// the environment variable CI is "true": there nothing may be skipped.
func Need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := lookPath(p); err != nil {
			Unavailable(t, err)
		}
	}
}

// Unavailable skips the test with the reason, or fails it where the
// environment variable CI is "true".
func Unavailable(t testing.TB, reason error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// lookPath is exec.LookPath that also looks where an administrator's programs
// are, which a user's PATH often lacks.
func lookPath(program string) (string, error) {
	path, err := exec.LookPath(program)
	if !errors.Is(err, exec.ErrNotFound) || strings.Contains(program, "/") {
		return path, err
	}
	for _, dir := range []string{"/usr/local/sbin/", "/usr/sbin/", "/sbin/"} {
		if path, err := exec.LookPath(dir + program); err == nil {
			return path, nil
		}
	}
	return "", err
}

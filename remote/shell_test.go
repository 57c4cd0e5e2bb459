package remote_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/remote"
)

// loginShells are those that a command is handed to.
var loginShells = []string{"sh", "bash", "dash", "zsh", "fish", "tcsh", "csh", "busybox"}

// through runs a command line by a login shell.
func through(t *testing.T, shell, command string) string {
	t.Helper()
	path, err := exec.LookPath(shell)
	if err != nil {
		harness.Unavailable(t, err)
	}
	argv := []string{"-c", command}
	if shell == "busybox" {
		argv = append([]string{"sh"}, argv...)
	}
	cmd := exec.Command(path, argv...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Errorf("%v: %s", err, stderr.String())
	}
	return string(out)
}

// Every login shell hands a script of several lines, and its arguments, to /bin/sh as
// they are.
func TestCommandThroughLoginShells(t *testing.T) {
	const script = `
for word; do
	printf '%s\n' "$word" # it's a "comment" with \ and !x
done
echo '! \ $HOME
5' "$(echo "a!b" | tr a-z 'A-Z')" \0012 "\\" %b
`
	args := []string{"plain", "", "a b", "it's", `"`, `\`, `\n`, `\0012`, "!!", "a!b", "$HOME", "`id`", "*", "~", "%d", "{a,b}", "#", ";", "äöü"}
	want := strings.Join(args, "\n") + "\n! \\ $HOME\n5 A!B 0012 \\ %b\n"
	for _, shell := range loginShells {
		t.Run(shell, func(t *testing.T) {
			command := remote.Command(script, args...)
			if strings.Contains(command, "\n") {
				t.Errorf("the command has several lines: %s", command)
			}
			if diff := cmp.Diff(through(t, shell, command), want); diff != "" {
				t.Errorf("got - want +\n%s", diff)
			}
			// As sudo and its like get it.
			if diff := cmp.Diff(through(t, shell, "exec env A=b /bin/sh -c "+remote.Quote(command)), want); diff != "" {
				t.Errorf("by another command: got - want +\n%s", diff)
			}
		})
	}
}

// Every login shell starts what the start scripts find.
func TestStartThroughLoginShells(t *testing.T) {
	dir := t.TempDir()
	program := "#!/bin/sh\nprintf '%s\\n' \"$0 $*\"\n"
	for _, name := range []string{"nix-store", "nix-daemon"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(program), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	far := remote.FarEnd{Store: "/a b!'\\c", Access: remote.Write}
	for _, shell := range loginShells {
		t.Run(shell, func(t *testing.T) {
			for want, command := range remote.StartCommands(far) {
				out := through(t, shell, command)
				if lines := strings.Split(strings.TrimSpace(out), "\n"); lines[len(lines)-1] != dir+"/"+want+" --store "+far.Store {
					t.Errorf("got %q, want an end with %s", out, want)
				}
			}
		})
	}
}

package farend_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/farend"
)

// TestMain lets this program stand for one of ours that serves through Nix.
func TestMain(m *testing.M) {
	if os.Getenv("FAREND_TEST_SERVE") == "" {
		os.Exit(m.Run())
	}
	err := farend.CheckLoop()
	if err == nil {
		err = farend.ServeThroughNix(false, true, "")
	}
	fmt.Println("error:", err)
	os.Exit(1)
}

// forms are ways to have a file that is or starts our program: the contents of a script,
// where SELF is our program, or the name of another way.
var forms = map[string]string{
	"symbolic link":     "symlink",
	"hard link":         "link",
	"copy":              "copy",
	"another build":     "build",
	"script":            "exec SELF \"$@\"",
	"script that waits": "SELF \"$@\"",
	"script, no marker": "exec env -i PATH=\"$PATH\" SELF \"$@\"",
	"script, by name":   "exec \"$(dirname \"$0\")\"/copy-closure \"$@\"",
}

// TestLookPath puts each form under the name nix-store first into PATH, and behind it a
// script that starts it, in front of a Nix and alone.
func TestLookPath(t *testing.T) {
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			first, second, nix := t.TempDir(), t.TempDir(), makeNix(t)
			install(t, first, form)
			install(t, second, "exec nix-store") // which is the first
			if got := serve(t, first, second, nix); got != "Nix --serve --write\n" {
				t.Errorf("in front of a Nix: %s", got)
			}
			got := serve(t, first, second)
			for _, want := range []string{first + "/nix-store", second + "/nix-store", "put Nix's own nix-store into PATH"} {
				if !strings.Contains(got, want) {
					t.Errorf("alone: %s, want it to have %q", got, want)
				}
			}
		})
	}
}

// TestLookPathUnreadable has links to our program, which its user may execute, not read.
func TestLookPathUnreadable(t *testing.T) {
	dir, nix := t.TempDir(), makeNix(t)
	install(t, dir, "copy")
	program, link := filepath.Join(dir, "copy-closure"), filepath.Join(dir, "nix-store")
	err := errors.Join(os.Rename(link, program), os.Symlink(program, link), os.Chmod(program, 0o111))
	for _, d := range []string{dir, nix, filepath.Dir(dir)} {
		err = errors.Join(err, os.Chmod(d, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := run(t, program, dir, nix); got != "Nix --serve --write\n" {
		t.Error(got)
	}
}

// TestCheckLoop has scripts that do not name our program: it notices that it is started
// again.
func TestCheckLoop(t *testing.T) {
	nix := makeNix(t)
	for form, want := range map[string]string{
		"exec \"$HIDDEN\" \"$@\"": "/nix-store is or starts copy-closure, which would start it again without end",
		"\"$HIDDEN\" \"$@\"":      "copy-closure was started by itself 8 times by way of ",
	} {
		dir := t.TempDir()
		install(t, dir, form)
		if got := serve(t, dir, nix); !strings.Contains(got, want) || !strings.Contains(got, dir) {
			t.Errorf("%s: %s, want %q and the script's name", form, got, want)
		}
	}
}

// TestLookPathOfNix has scripts that start a Nix.
func TestLookPathOfNix(t *testing.T) {
	nix := makeNix(t)
	for _, form := range []string{
		"# not copy-closure\nexec " + nix + "/nix-store \"$@\"",
		"PATH=" + nix + "; exec nix-store \"$@\"",
	} {
		dir := t.TempDir()
		install(t, dir, form)
		if got := serve(t, dir); got != "Nix --serve --write\n" {
			t.Errorf("%s: %s", form, got)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := farend.LookPath("nix-store"); !errors.Is(err, farend.ErrNoNix) {
		t.Errorf("error %v, want %v", err, farend.ErrNoNix)
	}
}

// makeNix returns a directory with a nix-store that prints what it is asked.
func makeNix(t *testing.T) string {
	dir := t.TempDir()
	install(t, dir, "/bin/echo Nix \"$@\"")
	return dir
}

// install makes dir/nix-store.
func install(t *testing.T, dir, form string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "nix-store")
	switch form {
	case "symlink":
		err = os.Symlink(self, file)
	case "link":
		if err = os.Link(self, file); err != nil { // to another file system
			harness.Unavailable(t, err)
		}
	case "copy", "build":
		program, readErr := os.ReadFile(self)
		if form == "build" {
			program = append(program, 0)
		}
		err = errors.Join(readErr, os.WriteFile(file, program, 0o755))
	default:
		text := "#!/bin/sh\n" + strings.ReplaceAll(form, "SELF", self) + "\n"
		err = os.WriteFile(file, []byte(text), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// serve has our program serve through Nix and returns what it or the Nix prints.
func serve(t *testing.T, path ...string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return run(t, self, path...)
}

// run is serve for another copy of our program. Root becomes another user for it.
func run(t *testing.T, program string, path ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "timeout", "20", program) // no loop for ever
	cmd.Env = []string{"FAREND_TEST_SERVE=1", "HIDDEN=" + program, "PATH=" + strings.Join(path, ":")}
	if self, _ := os.Executable(); program != self && os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(&out, err)
	}
	return out.String()
}

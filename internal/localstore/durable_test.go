package localstore_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// deleteHelper deletes the path that its test has put there.
func deleteHelper(root string) error {
	ctx := context.Background()
	s, err := localstore.Open(ctx, localstore.Under(root))
	if err != nil {
		return err
	}
	_, err = s.Delete(ctx, nixtest.Random(3, 1).Paths())
	return errors.Join(err, s.Close())
}

// TestDeleteReachesTheDisk wants the rows of deleted paths to be on the disk before the
// first of their files goes: a power failure that brings only the rows back would leave
// valid paths without contents.
func TestDeleteReachesTheDisk(t *testing.T) {
	root := tempDir(t)
	c := nixtest.Random(3, 1)
	fill(t, root, c...)
	calls := strace(t, helper("delete", root), "pwrite64,fsync,fdatasync,unlink,unlinkat")
	synced := false // the log of the database, since it was last written
	for _, call := range calls {
		switch {
		case strings.HasPrefix(call, "pwrite64") && strings.Contains(call, "db.sqlite-wal"):
			synced = false
		case strings.Contains(call, "sync(") && strings.Contains(call, "db.sqlite-wal"):
			synced = true
		case strings.HasPrefix(call, "unlink") && strings.Contains(call, c[0].Info.Path.Base()):
			if !synced {
				t.Errorf("files went before the rows were synced:\n%s", strings.Join(calls, "\n"))
			}
			return
		}
	}
	t.Errorf("nothing was deleted:\n%s", strings.Join(calls, "\n"))
}

// strace runs a command and returns its system calls of some kinds, in the order in
// which they began, with the names of open files.
func strace(t *testing.T, cmd *exec.Cmd, kinds string) []string {
	t.Helper()
	harness.Need(t, "strace")
	out := filepath.Join(tempDir(t), "calls")
	words := append([]string{"strace", "-f", "-y", "-qq", "-e", "signal=none", "-e", "trace=" + kinds, "-o", out, "--"}, cmd.Args...)
	traced := exec.Command(words[0], words[1:]...)
	traced.Env = cmd.Env
	text, err := traced.CombinedOutput()
	if strings.Contains(string(text), "ptrace(") {
		harness.Unavailable(t, errors.New(string(text)))
	}
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	trace, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var calls []string
	for line := range strings.Lines(string(trace)) {
		_, call, _ := strings.Cut(strings.TrimSpace(line), " ")
		if call = strings.TrimSpace(call); !strings.HasPrefix(call, "<...") {
			calls = append(calls, call)
		}
	}
	return calls
}

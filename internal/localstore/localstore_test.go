package localstore_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
)

// tempDir returns a directory that is deleted with its read-only directories.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "localstore")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		exec.Command("chmod", "-R", "u+w", dir).Run()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// run runs a program and returns what it prints.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := tryRun(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func tryRun(name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", errors.Join(err, errors.New(name+" "+strings.Join(args, " ")+": "+stderr.String()))
	}
	return strings.TrimSuffix(stdout.String(), "\n"), nil
}

// nixStore runs the real nix-store on the store under root.
func nixStore(t testing.TB, root string, args ...string) string {
	t.Helper()
	return run(t, "nix-store", append([]string{"--store", root}, args...)...)
}

// verifyWithNix has the real Nix check everything.
func verifyWithNix(t testing.TB, root string) {
	t.Helper()
	harness.Need(t, "nix-store")
	if _, err := tryRun("nix-store", "--store", root, "--verify", "--check-contents"); err != nil {
		t.Error(err)
	}
}

func openStore(t testing.TB, c localstore.Config) *localstore.Store {
	t.Helper()
	s, err := localstore.OpenOrCreate(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func parse(t testing.TB, s string) nix.StorePath {
	t.Helper()
	p, err := nix.DefaultStoreDir.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func pathsOf(infos []*nix.PathInfo) []string {
	var paths []string
	for _, info := range infos {
		paths = append(paths, info.Path.String())
	}
	slices.Sort(paths)
	return paths
}

// writeTree makes files of the contents given by their names; a name that ends
// in a slash is a directory, contents that begin with "->" are a link's target.
func writeTree(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if target, ok := strings.CutPrefix(content, "->"); ok {
			err = errors.Join(err, os.Symlink(target, path))
		} else if strings.HasSuffix(name, "/") {
			err = errors.Join(err, os.MkdirAll(path, 0o755))
		} else {
			err = errors.Join(err, os.WriteFile(path, []byte(content), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func readNAR(t testing.TB, s *localstore.Store, p nix.StorePath) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.WriteNAR(context.Background(), &b, p); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func hashOf(archive []byte) nix.Hash { return nix.SHA256Hash(sha256.Sum256(archive)) }

package substitute_test

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/substitute"
)

// expressions makes a directory with some.
func expressions(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"default.nix": "{}: {}\n", "lib/a.nix": "1\n", ".git/HEAD": "x"} {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("lib/a.nix", filepath.Join(dir, "link")), os.Chmod(filepath.Join(dir, "lib/a.nix"), 0o744)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestChannel(t *testing.T) {
	harness.Need(t, "xz")
	ctx, files := t.Context(), substitute.Dir(t.TempDir())
	closure := nixtest.Chain(2)
	c := &substitute.Channel{Name: "mine", Expressions: []string{expressions(t)}, Revision: "abc", CacheURL: "https://x", Paths: closure.Paths()}
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	if err := c.Publish(ctx, files); err != nil {
		t.Fatal(err)
	}
	f, err := files.Open(ctx, "mine/nixexprs.tar.xz", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	plain, err := substitute.XZ.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for archive := tar.NewReader(plain); ; {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(archive)
		got = append(got, strings.TrimSpace(h.FileInfo().Mode().String()+" "+h.Name+" "+h.Linkname+string(text)))
	}
	want := []string{"drwxr-xr-x mine/", "-rw-r--r-- mine/default.nix {}: {}", "drwxr-xr-x mine/lib/", "-rwxr-xr-x mine/lib/a.nix 1", "Lrwxrwxrwx mine/link lib/a.nix"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	c.Revision = ""
	if err := c.Publish(ctx, files); err != nil {
		t.Fatal(err)
	}
	if _, err := files.Open(ctx, "mine/git-revision", 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the revision of before: %v", err)
	}
}

func TestChannelCheck(t *testing.T) {
	dir := expressions(t)
	for _, c := range []substitute.Channel{
		{Name: "../x", Expressions: []string{dir}},
		{Name: "", Expressions: []string{dir}},
		{Name: "nar", Expressions: []string{dir}},
		{Name: "x", Expressions: nil},
		{Name: "x", Expressions: []string{filepath.Join(dir, "lib")}},
		{Name: "x", Expressions: []string{dir, filepath.Join(dir, "default.nix")}},
		{Name: "x", Expressions: []string{filepath.Join(dir, "missing")}},
	} {
		if err := c.Check(); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}

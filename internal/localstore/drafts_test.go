package localstore_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/copy-closure/copy-closure/internal/localstore"
)

// namesIn lists a directory.
func namesIn(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return strings.Join(names, " ")
}

// TestDraftsGo wants no draft left where it cannot be put into its place, nor one that a
// killed process has left when the next puts its own there.
func TestDraftsGo(t *testing.T) {
	for _, test := range []struct {
		name, draft string
		replace     func(path, text string) error
		killed      func(draft string) error
	}{
		{"file", ".tmp", localstore.WriteFile, func(draft string) error { return os.WriteFile(draft, []byte("1"), 0o644) }},
		{"link", ".tmp-copy-closure", localstore.ReplaceLink, func(draft string) error { return os.Symlink("nothing", draft) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := tempDir(t)
			taken, other := filepath.Join(dir, "taken"), filepath.Join(dir, "other")
			if err := os.MkdirAll(filepath.Join(taken, "by a directory"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := test.replace(taken, "10"); err == nil {
				t.Error("no error where it cannot be put into its place")
			}
			if got := namesIn(t, dir); got != "taken" {
				t.Errorf("after an error there are %s", got)
			}
			if err := test.killed(other + test.draft); err != nil {
				t.Fatal(err)
			}
			if err := test.replace(other, "10"); err != nil {
				t.Error(err)
			}
			if got := namesIn(t, dir); got != "other taken" {
				t.Errorf("after a kill there are %s", got)
			}
		})
	}
}

// TestReplaceLinkAtOnce has many replace one link.
func TestReplaceLinkAtOnce(t *testing.T) {
	dir := tempDir(t)
	link := filepath.Join(dir, "link")
	var replacing sync.WaitGroup
	for i := range 8 {
		replacing.Go(func() {
			for j := range 50 {
				if err := localstore.ReplaceLink(link, fmt.Sprint(i, j)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	replacing.Wait()
	if got := namesIn(t, dir); got != "link" {
		t.Errorf("there are %s", got)
	}
	if err := localstore.ReplaceLink(filepath.Join(dir, "none", "link"), "x"); !os.IsNotExist(err) {
		t.Errorf("in no directory: %v", err)
	}
}

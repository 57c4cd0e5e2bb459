package localstore_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// TestStalledSender has one import wait in the middle of a path, or with a path that lacks
// its reference, while another import adds the same path.
func TestStalledSender(t *testing.T) {
	big := nixtest.Source("big", nixtest.Node{Entries: map[string]nixtest.Node{"file": {Content: strings.Repeat("contents", 1<<17)}}})
	file := nixtest.Source("file", nixtest.Node{Content: strings.Repeat("contents", 1<<17)})
	chain := nixtest.Chain(2)
	for _, test := range []struct {
		name    string
		object  nixtest.Object
		sent    int // bytes, before nothing comes any more
		others  []nixtest.Object
		resumes bool // the rest comes at last
	}{
		{"nothing came", big, 0, []nixtest.Object{big}, true},
		{"in a directory", big, len(big.NAR) / 2, []nixtest.Object{big}, true},
		{"in a file", file, len(file.NAR) / 2, []nixtest.Object{file}, true},
		{"never goes on", big, len(big.NAR) / 2, []nixtest.Object{big}, false},
		{"nobody else", big, len(big.NAR) / 2, nil, true},
		{"without its reference", chain[1], len(chain[1].NAR), chain, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := tempDir(t)
			fill(t, root)
			synctest.Test(t, func(t *testing.T) {
				s := openStore(t, localstore.Under(root))
				stalled := s.NewImport(localstore.ImportOptions{})
				goOn := make(chan struct{})
				wait := readerFunc(func([]byte) (int, error) {
					<-goOn
					if !test.resumes {
						return 0, errLinkDown
					}
					return 0, io.EOF
				})
				verdict := make(chan error, 1)
				go stalled.Add(t.Context(), test.object.Info, io.MultiReader(bytes.NewReader(test.object.NAR[:test.sent]), wait, bytes.NewReader(test.object.NAR[test.sent:])), func(err error) { verdict <- err })
				synctest.Wait()
				other := openStore(t, localstore.Under(root))
				mustAdd(t, other, test.others...)
				if len(test.others) == 0 {
					time.Sleep(time.Minute)
				}
				close(goOn)
				synctest.Wait()
				if err := stalled.Close(); err != nil {
					t.Error(err)
				}
				if err := <-verdict; test.resumes && err != nil || !test.resumes && !errors.Is(err, errLinkDown) {
					t.Errorf("the stalled import got %v", err)
				}
			})
			expectTidy(t, root)
			if left, _ := filepath.Glob(filepath.Join(root, "nix/store/*unfinished*")); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
			if _, err := os.Lstat(filepath.Join(root, "nix/store", test.object.Info.Path.Base())); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestUnfinishedTreeIsSwept has a process die while its tree is out of the path's place.
func TestUnfinishedTreeIsSwept(t *testing.T) {
	root := tempDir(t)
	fill(t, root)
	chain := nixtest.Chain(2)
	c := localstore.Under(root)
	aside := filepath.Join(c.RealDir, chain[1].Info.Path.HashPart()+"-unfinished-1")
	if err := os.MkdirAll(filepath.Join(aside, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(c.StateDir, "temproots"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.StateDir, "temproots/1"), []byte(chain[1].Info.Path.String()+"\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	mustAdd(t, openStore(t, c), chain[0])
	if _, err := os.Lstat(aside); err == nil {
		t.Error("the tree is left behind")
	}
}

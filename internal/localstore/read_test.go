package localstore_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
)

// nixMade returns the root of a store made by Nix: paths that refer to each other
// and one to itself, all with what the database can say of a path.
func nixMade(t *testing.T) (root string, paths []string) {
	harness.Need(t, "nix-store")
	root = tempDir(t)
	src := tempDir(t)
	writeTree(t, src, map[string]string{"leaf": "leaf\n", "tree/bin/run": "#!/bin/sh\n", "tree/empty/": "", "tree/link": "->bin/run"})
	leaf := nixStore(t, root, "--add", filepath.Join(src, "leaf"))
	tree := nixStore(t, root, "--add", filepath.Join(src, "tree"))
	flat := nixStore(t, root, "--add-fixed", "sha256", filepath.Join(src, "leaf"))
	// Two that are not content-addressed, which refer to others and to themselves.
	var registration strings.Builder
	last := tree
	for _, base := range []string{"00000000000000000000000000000001-one", "00000000000000000000000000000002-two"} {
		p := "/nix/store/" + base
		writeTree(t, filepath.Join(root, "nix/store"), map[string]string{base: p + "\n" + last + "\n"})
		var contents bytes.Buffer
		if err := nar.Dump(t.Context(), &contents, filepath.Join(root, p)); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&registration, "%s\n%x\n%d\n\n3\n%s\n%s\n%s\n", p, sha256.Sum256(contents.Bytes()), contents.Len(), p, last, leaf)
		paths, last = append(paths, p), p
	}
	writeTree(t, src, map[string]string{"registration": registration.String()})
	run(t, "sh", "-c", "nix-store --store "+root+" --load-db <"+filepath.Join(src, "registration"))
	return root, append(paths, leaf, tree, flat)
}

func TestReadsNix(t *testing.T) {
	root, paths := nixMade(t)
	verifyWithNix(t, root)
	for _, readOnly := range []bool{false, true} {
		t.Run("readOnly="+strconv.FormatBool(readOnly), func(t *testing.T) {
			c := localstore.Under(root)
			c.ReadOnly = readOnly
			s := openStore(t, c)
			for _, text := range paths {
				p := parse(t, text)
				info, err := s.PathInfo(t.Context(), p)
				if err != nil {
					t.Fatal(err)
				}
				compareWithNix(t, root, info)
				if same, err := s.PathInfoFromHashPart(t.Context(), p.HashPart()); err != nil {
					t.Error(err)
				} else if d := cmp.Diff(same, info, cmp.AllowUnexported(nix.StorePath{}, nix.Hash{}), cmpopts.EquateEmpty()); d != "" {
					t.Errorf("by its hash part (-got +want):\n%s", d)
				}
				infos, err := s.Closure(t.Context(), []nix.StorePath{p})
				if err != nil {
					t.Fatal(err)
				}
				want := strings.Fields(nixStore(t, root, "-qR", text))
				slices.Sort(want)
				if d := cmp.Diff(pathsOf(infos), want); d != "" {
					t.Errorf("closure of %s (-got +want):\n%s", p, d)
				}
				if got, want := string(readNAR(t, s, p)), run(t, "nix-store", "--dump", s.RealPath(p)); got != want {
					t.Errorf("%s: NAR differs", p)
				}
			}
			if err := s.Verify(t.Context(), nil, func(p nix.StorePath, err error) {
				if err != nil {
					t.Errorf("%s: %v", p, err)
				}
			}); err != nil {
				t.Error(err)
			}
		})
	}
}

// compareWithNix compares an info with what nix-store -q prints.
func compareWithNix(t *testing.T, root string, info *nix.PathInfo) {
	t.Helper()
	p := info.Path.String()
	refs := strings.Fields(nixStore(t, root, "-q", "--references", p))
	slices.Sort(refs)
	var got []string
	for _, ref := range info.References {
		got = append(got, ref.String())
	}
	if d := cmp.Diff(got, refs, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("references of %s (-got +want):\n%s", p, d)
	}
	if want := nixStore(t, root, "-q", "--hash", p); info.NARHash.String() != want {
		t.Errorf("hash of %s is %s, want %s", p, info.NARHash, want)
	}
	if want := nixStore(t, root, "-q", "--size", p); strconv.FormatInt(info.NARSize, 10) != want {
		t.Errorf("size of %s is %d, want %s", p, info.NARSize, want)
	}
	if info.Registered.IsZero() {
		t.Errorf("%s has no registration time", p)
	}
}

func TestNotValid(t *testing.T) {
	s := openStore(t, localstore.Under(tempDir(t)))
	p := parse(t, "/nix/store/00000000000000000000000000000001-one")
	if _, err := s.PathInfo(t.Context(), p); !errors.Is(err, nix.ErrNotValid) {
		t.Errorf("PathInfo: %v", err)
	}
	for _, part := range []string{p.HashPart(), "", "/", strings.Repeat("z", 32)} {
		if _, err := s.PathInfoFromHashPart(t.Context(), part); !errors.Is(err, nix.ErrNotValid) {
			t.Errorf("PathInfoFromHashPart %q: %v", part, err)
		}
	}
	if _, err := s.Closure(t.Context(), []nix.StorePath{p}); !errors.Is(err, nix.ErrNotValid) || !strings.Contains(err.Error(), p.String()) {
		t.Errorf("Closure: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	c := localstore.Under(tempDir(t))
	if _, err := localstore.Open(t.Context(), c); !errors.Is(err, localstore.ErrNoStore) {
		t.Errorf("no store: %v", err)
	}
	openStore(t, c)
	if err := os.WriteFile(filepath.Join(c.StateDir, "db/schema"), []byte("11"), 0o644); err != nil {
		t.Fatal(err)
	}
	var schema *localstore.SchemaError
	if _, err := localstore.Open(t.Context(), c); !errors.As(err, &schema) || schema.Version != "11" {
		t.Errorf("schema 11: %v", err)
	}
	c.StoreDir = "nix/store"
	if _, err := localstore.Open(t.Context(), c); err == nil {
		t.Error("a relative store directory is accepted")
	}
}

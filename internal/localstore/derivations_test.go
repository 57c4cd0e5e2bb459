package localstore_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// realDerivations returns what the real Nix wrote, references first. See
// internal/nix/testdata.
func realDerivations(t testing.TB) nixtest.Closure {
	t.Helper()
	const dir = "../nix/testdata/derivations"
	text := make(map[nix.StorePath]string)
	for _, pattern := range []string{"*.drv", "*.sh"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%d files %s, %v", len(files), pattern, err)
		}
		for _, file := range files {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			text[parse(t, "/nix/store/"+filepath.Base(file))] = string(content)
		}
	}
	var c nixtest.Closure
	done := make(map[nix.StorePath]bool)
	var add func(nix.StorePath)
	add = func(p nix.StorePath) {
		if done[p] {
			return
		}
		done[p] = true
		refs := references(t, p, text[p])
		for _, ref := range refs {
			add(ref)
		}
		o := nixtest.Text(p.Name(), text[p], refs...)
		if o.Info.Path != p {
			t.Fatalf("%s became %s", p, o.Info.Path)
		}
		c = append(c, o)
	}
	for p := range text {
		add(p)
	}
	return c
}

// references returns the inputs of a derivation, as its references are.
func references(t testing.TB, p nix.StorePath, text string) []nix.StorePath {
	if !p.IsDerivation() {
		return nil
	}
	drv, err := nix.DefaultStoreDir.ParseDerivation(p, text)
	if err != nil {
		t.Fatal(err)
	}
	refs := slices.Clone(drv.Sources)
	for _, in := range drv.Inputs {
		refs = append(refs, in.Path)
	}
	return refs
}

func TestRealDerivations(t *testing.T) {
	for name, opts := range map[string]localstore.ImportOptions{
		"one group": {}, "groups of two": {BatchPaths: 2},
	} {
		t.Run(name, func(t *testing.T) {
			root := tempDir(t)
			c := realDerivations(t)
			slices.Reverse(c) // referrers first
			s := openStore(t, localstore.Under(root))
			im := s.NewImport(opts)
			if name == "one group" {
				if err := im.Atomic(len(c)); err != nil {
					t.Fatal(err)
				}
			}
			for base, err := range addAll(t, im, c...) {
				if err != nil {
					t.Errorf("%s: %v", base, err)
				}
			}
			if err := im.Close(); err != nil {
				t.Error(err)
			}
			harness.Need(t, "nix-store")
			for _, o := range c {
				if !strings.HasSuffix(o.Info.Path.Name(), "2.0.drv") {
					continue
				}
				if got, want := nixStore(t, root, "-q", "--outputs", o.Info.Path.String()), "/nix/store/2dqbm7haacccs1ycfb6651y3d7gynirk-program-2.0"; got != want {
					t.Errorf("outputs of %s are %s, want %s", o.Info.Path, got, want)
				}
			}
		})
	}
}

// forged returns a derivation that claims a path as its output.
func forged(victim string, inputs string, refs ...nix.StorePath) nixtest.Object {
	return nixtest.Text("innocent.drv", `Derive([("out","`+victim+`","","")],[`+inputs+`],[],"x86_64-linux","/bin/sh",["-c","echo trojan > $out"],`+
		`[("name","innocent"),("out","`+victim+`")])`, refs...)
}

// TestForgedDerivation checks that a derivation is not taken whose outputs do not follow
// from it, that what needs it is not either, and that all else is.
func TestForgedDerivation(t *testing.T) {
	const victim = "/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-sudo-1.9"
	bad := forged(victim, "")
	input := bad.Info.Path.String()
	above := forged(victim, `("`+input+`",["out"])`, bad.Info.Path)
	absent := forged(victim, `("/nix/store/bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-absent.drv",["out"])`)
	unsigned := forged(victim, "")
	unsigned.Info.CA = ""
	flat := nixtest.Flat("innocent.drv", "text")
	directory := nixtest.Output("directory", "directory.drv", func(string) nixtest.Node {
		return nixtest.Node{Entries: map[string]nixtest.Node{}}
	})
	good := nixtest.Chain(2)
	for _, atomic := range []bool{false, true} {
		root := tempDir(t)
		s := openStore(t, localstore.Under(root))
		for name, objects := range map[string]nixtest.Closure{
			"forged":                 {bad},
			"forged, without CA":     {unsigned},
			"on top of a forged one": {above, bad},
			"input is absent":        {absent},
			"flat":                   {flat},
			"directory":              {directory},
		} {
			im := s.NewImport(localstore.ImportOptions{})
			all := append(slices.Clone(objects), good...)
			if atomic {
				if err := im.Atomic(len(all)); err != nil {
					t.Fatal(err)
				}
			}
			verdicts := addAll(t, im, all...)
			for i, o := range all {
				if err, fine := verdicts[o.Info.Path.Base()], i >= len(objects) && !atomic; (err == nil) != fine {
					t.Errorf("%s (atomic %v): %s: %v", name, atomic, o.Info.Path, err)
				}
			}
			if err := im.Close(); err != nil {
				t.Error(err)
			}
		}
		expectTidy(t, root)
		verifyWithNix(t, root)
	}
}

// TestDerivationInputsInAnyOrder has a derivation whose inputs are not its references, as
// Nix accepts, come before them.
func TestDerivationInputsInAnyOrder(t *testing.T) {
	c := realDerivations(t)
	root := tempDir(t)
	s := openStore(t, localstore.Under(root))
	im := s.NewImport(localstore.ImportOptions{})
	for i, o := range c {
		// Signed ones may have any references.
		info := *o.Info
		info.CA, info.References = "", nil
		c[i].Info = &info
	}
	slices.Reverse(c)
	for base, err := range addAll(t, im, c...) {
		if err != nil {
			t.Errorf("%s: %v", base, err)
		}
	}
	if err := im.Close(); err != nil {
		t.Error(err)
	}
}

// TestExecutableContents checks that contents with an address of their bytes alone are not
// executable.
func TestExecutableContents(t *testing.T) {
	s := openStore(t, localstore.Under(tempDir(t)))
	for name, o := range map[string]nixtest.Object{
		"text": nixtest.Text("text", "content"),
		"flat": nixtest.Flat("flat", "content"),
	} {
		o.NAR = nixtest.Node{Content: "content", Executable: true}.NAR()
		o.Info.NARHash, o.Info.NARSize = hashOf(o.NAR), int64(len(o.NAR))
		im := s.NewImport(localstore.ImportOptions{})
		if err := addAll(t, im, o)[o.Info.Path.Base()]; !errors.Is(err, nix.ErrDamaged) {
			t.Errorf("executable %s: %v", name, err)
		}
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestVerifyForged checks that a derivation is reported that was registered before its
// outputs were checked.
func TestVerifyForged(t *testing.T) {
	root := tempDir(t)
	s := openStore(t, localstore.Under(root))
	bad := forged("/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-sudo-1.9", "")
	c := append(realDerivations(t), bad)
	mustAdd(t, s, c[:len(c)-1]...)
	if err := localstore.Register(t.Context(), s, []*nix.PathInfo{bad.Info}); err != nil {
		t.Fatal(err)
	}
	if err := nar.Restore(t.Context(), bytes.NewReader(bad.NAR), s.RealPath(bad.Info.Path), nar.RestoreOptions{Canonical: true}); err != nil {
		t.Fatal(err)
	}
	damaged := 0
	err := s.Verify(t.Context(), nil, func(p nix.StorePath, err error) {
		if (p == bad.Info.Path) != errors.Is(err, nix.ErrDamaged) {
			t.Errorf("%s: %v", p, err)
		}
		if err != nil {
			damaged++
		}
	})
	if err != nil || damaged != 1 {
		t.Errorf("%d damaged, %v", damaged, err)
	}
}

package nix_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// derivations returns the texts that the real Nix wrote, by store path.
func derivations(t testing.TB) map[nix.StorePath]string {
	t.Helper()
	files, err := filepath.Glob("testdata/derivations/*.drv")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	texts := make(map[nix.StorePath]string)
	for _, file := range files {
		p, err := nix.DefaultStoreDir.ParseBase(filepath.Base(file))
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		texts[p] = string(text)
	}
	return texts
}

// named returns the path of that name.
func named(t testing.TB, texts map[nix.StorePath]string, name string) nix.StorePath {
	t.Helper()
	for p := range texts {
		if p.Name() == name {
			return p
		}
	}
	t.Fatalf("no derivation %s", name)
	return nix.StorePath{}
}

// hasher returns a function that hashes the derivations of texts.
func hasher(texts map[nix.StorePath]string) func(nix.StorePath) (nix.DerivationHash, error) {
	var hash func(nix.StorePath) (nix.DerivationHash, error)
	hash = func(p nix.StorePath) (nix.DerivationHash, error) {
		drv, err := nix.DefaultStoreDir.ParseDerivation(p, texts[p])
		if err != nil {
			return nix.DerivationHash{}, err
		}
		return drv.Hash(hash)
	}
	return hash
}

func checkOutputs(p nix.StorePath, text string, inputs func(nix.StorePath) (nix.DerivationHash, error)) error {
	drv, err := nix.DefaultStoreDir.ParseDerivation(p, text)
	if err != nil {
		return err
	}
	return drv.CheckOutputs(nix.DefaultStoreDir, inputs)
}

func TestCheckOutputsOfRealDerivations(t *testing.T) {
	texts := derivations(t)
	for p, text := range texts {
		if err := checkOutputs(p, text, hasher(texts)); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
}

// TestForgedOutputs changes derivations that the real Nix wrote. What it makes of each
// change was tried with Nix 2.8.
func TestForgedOutputs(t *testing.T) {
	texts := derivations(t)
	const victim = "/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-sudo-1.9"
	for _, test := range []struct {
		what, name string
		old, new   string // all occurrences
		sound      bool
	}{
		{"input-addressed output", "program-2.0.drv", "/nix/store/2dqbm7haacccs1ycfb6651y3d7gynirk-program-2.0", victim, false},
		{"one of two outputs", "structured.drv", "/nix/store/6qbgn8l9cnpk6h25awwxcscb682lc5qs-structured-bin", victim, false},
		{"builder", "program-2.0.drv", "/bin/sh", "/bin/evil", false},
		{"system", "program-2.0.drv", "x86_64-linux", "aarch64-linux", false},
		{"a variable's value", "program-2.0.drv", `("name","program-2.0")`, `("name","program-2.1")`, false},
		{"input that is not known", "structured.drv", "a56rq93i594xs15cw9y3pcvmb52mxv7m", "a56rq93i594xs15cw9y3pcvmb52mxv7n", false},
		{"output of an input", "program-2.0.drv", `["dev","doc","out"]`, `["doc","out"]`, false},
		{"fixed output's variable", "tree.drv", `("out","`, `("out","` + victim + `"),("other","`, false},
		{"fixed output that is not named out", "tree.drv", `"out"`, `"lib"`, false},
		{"no outputs", "impure.drv", `[("out","","r:sha256","impure")]`, `[]`, false},
		{"two kinds of outputs", "floating.drv", `[("lib","","r:sha256","")`, `[("lib","","","")`, false},
		{"two hash algorithms", "floating.drv", `[("lib","","r:sha256","")`, `[("lib","","r:sha1","")`, false},
		{"floating output with a path", "floating.drv", `("lib","",`, `("lib","` + victim + `",`, false},
		{"output that should be deferred", "deferred.drv", `("out","","","")`, `("out","` + victim + `","","")`, false},
		{"cut off", "tree.drv", `])`, `]`, false},

		{"text behind the derivation", "tree.drv", `-linux")])`, `-linux")])])`, true},
		{"comma at the end of a list", "program-2.0.drv", `"/bin/sh",[]`, `"/bin/sh",[,]`, false},
		{"missing commas", "program-2.0.drv", `["dev","doc","out"]`, `["dev""doc""out"]`, true},
		{"commas at the front", "program-2.0.drv", `["dev","doc","out"]`, `[,"dev","doc","out"]`, true},
		{"other order", "program-2.0.drv", `["dev","doc","out"]`, `["out","doc","dev"]`, true},
		{"variable twice, the last one right", "program-2.0.drv", `("name",`, `("name","x"),("name",`, true},
		{"double slashes", "program-2.0.drv", `[("/nix/store/`, `[("/nix//store/`, true},
	} {
		t.Run(test.what, func(t *testing.T) {
			p := named(t, texts, test.name)
			text := strings.ReplaceAll(texts[p], test.old, test.new)
			if text == texts[p] {
				t.Fatalf("%q is not in the text of %s", test.old, p)
			}
			known := hasher(texts)
			err := checkOutputs(p, text, func(in nix.StorePath) (nix.DerivationHash, error) {
				if texts[in] == "" {
					return nix.DerivationHash{}, nix.ErrNotValid
				}
				return known(in)
			})
			if sound := err == nil; sound != test.sound {
				t.Errorf("sound: %v, want %v: %v", sound, test.sound, err)
			}
		})
	}
}

// TestFixedOutputPath checks that the path of a fixed output comes from its hash, whatever
// the text says.
func TestFixedOutputPath(t *testing.T) {
	texts := derivations(t)
	p := named(t, texts, "tree.drv")
	drv, err := nix.DefaultStoreDir.ParseDerivation(p, texts[p])
	if err != nil {
		t.Fatal(err)
	}
	want := drv.Outputs[0].Path.String()
	forged := strings.Replace(texts[p], want, "/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-sudo-1.9", 1)
	if drv, err = nix.DefaultStoreDir.ParseDerivation(p, forged); err != nil {
		t.Fatal(err)
	}
	if got := drv.Outputs[0].Path.String(); got != want {
		t.Errorf("path of the output is %s, want %s", got, want)
	}
}

func TestParseDerivationLimits(t *testing.T) {
	p := named(t, derivations(t), "tree.drv")
	text := `Derive([],[],[],"","",[` + strings.Repeat(`"",`, 1<<20) + `""],[])`
	if _, err := nix.DefaultStoreDir.ParseDerivation(p, text); err == nil || !strings.Contains(err.Error(), "items") {
		t.Errorf("too many items: %v", err)
	}
	if _, err := nix.DefaultStoreDir.ParseDerivation(parse(t, nix.DefaultStoreDir, "/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-x"), drvText); err == nil {
		t.Error("a path that is not named .drv is accepted")
	}
	if _, err := nix.DefaultStoreDir.ParseDerivation(p, `Derive([],[],[],"","",[],[("a\`); err == nil || errors.Is(err, nix.ErrNotValid) {
		t.Errorf("cut off behind a backslash: %v", err)
	}
}

package nix_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

func TestCheckSignature(t *testing.T) {
	whole := nixtest.Signature("cache.example.org-1")
	for sig, good := range map[string]bool{
		whole:                              true,
		nixtest.Signature("prüfer-1"):      true,
		"":                                 false,
		"cache-1":                          false,
		nixtest.Signature(""):              false,
		"cache-1:AAAA":                     false,
		whole[:len(whole)-2]:               false,
		whole + "\n":                       false,
		whole[:40] + "\n" + whole[40:]:     false,
		whole + "\nURL: nar/x":             false,
		nixtest.Signature("a b"):           false,
		nixtest.Signature("a\nCA: x"):      false,
		nixtest.Signature("a\x1b[31m"):     false,
		nixtest.Signature("a\u202eb"):      false,
		nixtest.Signature("a\xff"):         false,
		nixtest.Signature("a\x00"):         false,
		whole + ":" + whole:                false,
		strings.Repeat("x", 500) + whole:   false,
		strings.Repeat("x", 1<<20) + ":":   false,
		"ünder:" + strings.Repeat("=", 88): false,
	} {
		if err := nix.CheckSignature(sig); (err == nil) != good {
			t.Errorf("%.60q: %v", sig, err)
		}
	}
}

// manySignatures returns as many signatures as no path has.
func manySignatures() (sigs []string) {
	for i := range 3000 {
		sigs = append(sigs, nixtest.Signature(fmt.Sprintf("evil-%d", i)))
	}
	return sigs
}

// TestSignAmongMany checks that a path can be signed that has too many signatures.
func TestSignAmongMany(t *testing.T) {
	key, err := nix.GenerateSecretKey("good-1")
	if err != nil {
		t.Fatal(err)
	}
	info := *nixtest.Chain(1)[0].Info
	info.Signatures = manySignatures()
	sigs, err := info.SignedWith([]nix.SecretKey{key})
	if err != nil || len(sigs) != nix.MaxSignatures || !strings.HasPrefix(sigs[len(sigs)-1], "good-1:") || sigs[0] != info.Signatures[0] {
		t.Fatalf("%d signatures from %q, %v", len(sigs), sigs[0], err)
	}
	info.Signatures = sigs
	if again, err := info.SignedWith([]nix.SecretKey{key}); err != nil || !slices.Equal(again, sigs) {
		t.Errorf("signed again: %d signatures, %v", len(again), err)
	}
}

func TestMergeSignatures(t *testing.T) {
	a, b, c := nixtest.Signature("a-1"), nixtest.Signature("b-1"), nixtest.Signature("c-1")
	if got := nix.MergeSignatures([]string{b, a, "x", b}, []string{c, a, "y", c}); !slices.Equal(got, []string{b, c, a}) {
		t.Errorf("got %q", got)
	}
}

package localstore_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// TestTooManySignatures adds signatures until there is no room for more. The path can
// still be read, and signed.
func TestTooManySignatures(t *testing.T) {
	s := openStore(t, localstore.Under(tempDir(t)))
	o := nixtest.Chain(1)[0]
	first := nixtest.Signature("first-1")
	o.Info.Signatures = []string{"malformed-1:AAAA", "a\nb:AAAA", first}
	mustAdd(t, s, o)
	read := func() []string {
		t.Helper()
		info, err := s.PathInfo(t.Context(), o.Info.Path)
		if err != nil {
			t.Fatal(err)
		}
		if closure, err := s.Closure(t.Context(), []nix.StorePath{info.Path}); err != nil || !slices.Equal(closure[0].Signatures, info.Signatures) {
			t.Errorf("in the closure it has %d signatures, %v", len(closure[0].Signatures), err)
		}
		return info.Signatures
	}
	if got := read(); !slices.Equal(got, []string{first}) {
		t.Errorf("signatures after the import: %q", got)
	}
	for batch := range 3 {
		var sigs []string
		for i := range 1000 {
			sigs = append(sigs, nixtest.Signature(fmt.Sprintf("evil-%d-%d", batch, i)))
		}
		if _, err := s.AddSignatures(t.Context(), o.Info.Path, sigs); err != nil {
			t.Error(err)
		}
	}
	if got := read(); len(got) > nix.MaxSignatures {
		t.Errorf("there are %d signatures", len(got))
	}
	last := nixtest.Signature("last-1")
	if added, err := s.AddSignatures(t.Context(), o.Info.Path, []string{last}); added != 1 || err != nil {
		t.Errorf("sign: %d added, %v", added, err)
	}
	if got := read(); !slices.Contains(got, last) {
		t.Error("the last signature is not there")
	}
	if _, err := s.AddSignatures(t.Context(), o.Info.Path, []string{"evil-1:AAAA"}); err == nil {
		t.Error("a malformed signature is added")
	}
}

// TestForeignRow reads what another program has written: too many signatures, and a time
// that cannot be.
func TestForeignRow(t *testing.T) {
	s := openStore(t, localstore.Under(tempDir(t)))
	o := nixtest.Chain(1)[0]
	mustAdd(t, s, o)
	good := nixtest.Signature("good-1")
	sigs := []string{good, "evil:x", strings.Repeat(" y:"+strings.Repeat("A", 1000), 10_000)}
	for i := range 3000 {
		sigs = append(sigs, nixtest.Signature(fmt.Sprint("evil-", i)))
	}
	if err := localstore.UpdateRow(t.Context(), s, o.Info.Path, strings.Join(sigs, " "), 1<<62); err != nil {
		t.Fatal(err)
	}
	info, err := s.PathInfo(t.Context(), o.Info.Path)
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Signatures) != nix.MaxSignatures || info.Signatures[0] != good || !info.Registered.IsZero() {
		t.Errorf("%d signatures, registered at %v", len(info.Signatures), info.Registered)
	}
}

// TestImpossibleTime has an import write no time that a reader refuses.
func TestImpossibleTime(t *testing.T) {
	s := openStore(t, localstore.Under(tempDir(t)))
	for i, seconds := range []int64{-5, 1<<63 - 1} {
		o := nixtest.Chain(2)[i]
		o.Info.Registered = time.Unix(seconds, 0)
		mustAdd(t, s, o)
		info, err := s.PathInfo(t.Context(), o.Info.Path)
		if err != nil || time.Since(info.Registered).Abs() > 24*time.Hour {
			t.Errorf("%d seconds: registered at %v, %v", seconds, info.Registered, err)
		}
	}
}

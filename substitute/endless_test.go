package substitute_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/substitute"
)

// endlessFiles are a cache whose every path refers to many more that it invents.
type endlessFiles struct{ invented, asked atomic.Int64 }

const endlessFan = 50_000

func (f *endlessFiles) Open(_ context.Context, name string, _ int64) (io.ReadCloser, error) {
	part, ok := strings.CutSuffix(name, ".narinfo")
	if !ok {
		return io.NopCloser(strings.NewReader("StoreDir: /nix/store\n")), nil
	}
	f.asked.Add(1)
	var b strings.Builder
	fmt.Fprintf(&b, "StorePath: /nix/store/%s-a\nURL: nar/a\nCompression: none\nNarHash: sha256:%052d\nNarSize: 1\nReferences:", part, 0)
	for range endlessFan {
		fmt.Fprintf(&b, " %032d-a", f.invented.Add(1))
	}
	return io.NopCloser(strings.NewReader(b.String() + "\n")), nil
}

func (f *endlessFiles) String() string { return "endless" }

// TestClosureEndless wants an error before most of the invented paths are asked about.
func TestClosureEndless(t *testing.T) {
	files := new(endlessFiles)
	root, err := nixtest.Dir.ParseBase(strings.Repeat("z", 32) + "-a")
	if err != nil {
		t.Fatal(err)
	}
	s := &substitute.Substituters{Caches: []*substitute.Cache{{Files: files, StoreDir: nixtest.Dir}}, Concurrency: 1}
	_, err = s.Closure(t.Context(), []nix.StorePath{root}, func(nix.StorePath) bool { return false })
	if !errors.Is(err, nix.ErrClosureTooLarge) {
		t.Errorf("got %v", err)
	}
	if most := int64(nix.MaxClosurePaths/endlessFan + 1); files.asked.Load() > most {
		t.Errorf("asked about %d paths, expected at most %d", files.asked.Load(), most)
	}
}

package closure_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// An endlessSource invents references for whatever it is asked about.
type endlessSource struct {
	closure.Source
	invented int
	shared   []nix.StorePath
}

func (s *endlessSource) PathInfos(_ context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error) {
	var infos []*nix.PathInfo
	for _, p := range paths {
		s.invented++
		fresh, err := nixtest.Dir.ParseBase(fmt.Sprintf("%032d-invented", s.invented))
		if err != nil {
			return nil, err
		}
		// The others let the test come to the limit without taking the memory.
		infos = append(infos, &nix.PathInfo{Path: p, References: append(s.shared[:len(s.shared):len(s.shared)], fresh)})
	}
	return infos, nil
}

// TestWalkEndless wants a closure without an end to be an error.
func TestWalkEndless(t *testing.T) {
	root := nixtest.Chain(1)[0].Info.Path
	s := &endlessSource{shared: make([]nix.StorePath, 20_000)}
	for i := range s.shared {
		s.shared[i] = root
	}
	_, err := closure.Walk(t.Context(), s, []nix.StorePath{root})
	if !errors.Is(err, nix.ErrClosureTooLarge) {
		t.Errorf("after %d paths: %v", s.invented, err)
	}
}

// TestClosureBudget counts paths that take no memory.
func TestClosureBudget(t *testing.T) {
	var b nix.ClosureBudget
	for range nix.MaxClosurePaths {
		if err := b.Add(1); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Add(1); !errors.Is(err, nix.ErrClosureTooLarge) {
		t.Errorf("got %v", err)
	}
}

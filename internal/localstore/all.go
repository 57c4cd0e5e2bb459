package localstore

import (
	"context"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// AllPaths returns all valid paths, sorted.
func (s *Store) AllPaths(ctx context.Context) ([]nix.StorePath, error) { return s.allPaths(ctx) }

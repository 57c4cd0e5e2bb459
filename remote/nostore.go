package remote

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A NoStore is the Backend of a reader where there is no store yet: it is empty, so that
// a dry run of a first push finds what it needs to know.
type NoStore struct{ Dir nix.StoreDir }

// StoreDir implements Backend.
func (n NoStore) StoreDir() nix.StoreDir { return n.Dir }

// ValidPaths implements Backend.
func (NoStore) ValidPaths(context.Context, []nix.StorePath) ([]nix.StorePath, error) { return nil, nil }

// PathInfos implements Backend.
func (NoStore) PathInfos(context.Context, []nix.StorePath) ([]*nix.PathInfo, error) { return nil, nil }

// Closure implements Backend.
func (NoStore) Closure(_ context.Context, roots []nix.StorePath) ([]*nix.PathInfo, error) {
	for _, root := range roots {
		return nil, fmt.Errorf("%s: %w", root, nix.ErrNotValid)
	}
	return nil, nil
}

// WriteNAR implements Backend.
func (NoStore) WriteNAR(_ context.Context, _ io.Writer, p nix.StorePath) error {
	return fmt.Errorf("%s: %w", p, nix.ErrNotValid)
}

// Hold implements Backend.
func (NoStore) Hold(context.Context, []nix.StorePath) error { return nil }

// Import implements Backend.
func (NoStore) Import(context.Context) (Importer, error) {
	return nil, errors.New("there is no store")
}

package cli

import (
	"context"
	"fmt"

	"github.com/copy-closure/copy-closure/substitute"
)

// openWritableCache returns the files of the cache at an address, to be changed.
// Nothing is asked of it yet.
func (p *program) openWritableCache(ctx context.Context, address string) (substitute.WritableFiles, error) {
	files, err := p.openCache(ctx, address)
	if err != nil {
		return nil, err
	}
	writable, ok := files.(substitute.WritableFiles)
	if !ok {
		return nil, fmt.Errorf("cache %s cannot be changed", files)
	}
	return writable, nil
}

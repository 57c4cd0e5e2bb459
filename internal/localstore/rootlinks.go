package localstore

import (
	"context"
	"crypto/sha1"
	"fmt"
	"os"
	"path/filepath"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// AddIndirectRoot makes a link a root for as long as it is there and leads into the
// store, whoever makes it and when.
func (s *Store) AddIndirectRoot(ctx context.Context, link string) error {
	if err := s.mayWrite(); err != nil {
		return err
	}
	if !filepath.IsAbs(link) || filepath.Clean(link) != link {
		return fmt.Errorf("add root %q: it is not an absolute path", link)
	}
	if err := s.linkIndirectly(link); err != nil {
		return fmt.Errorf("add root %q: %w", link, err)
	}
	return s.outlastCollector(ctx)
}

// linkIndirectly leads the collector to a link that is elsewhere.
func (s *Store) linkIndirectly(link string) error {
	sum := sha1.Sum([]byte(link))
	auto := s.config.state("gcroots/auto")
	if err := os.MkdirAll(auto, 0o755); err != nil {
		return err
	}
	return replaceLink(filepath.Join(auto, nix.EncodeNix32(sum[:])), link)
}

// Roots returns the links that are roots, with the paths that they lead to. What
// processes use is not among them.
func (s *Store) Roots(ctx context.Context) (map[string]nix.StorePath, error) {
	links := make(map[string]nix.StorePath)
	for _, dir := range []string{"gcroots", "profiles"} {
		if err := s.findLinks(ctx, func(p nix.StorePath, link string) { links[link] = p }, s.config.state(dir)); err != nil {
			return nil, fmt.Errorf("find roots: %w", err)
		}
	}
	return links, nil
}

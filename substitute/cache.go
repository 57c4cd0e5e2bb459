package substitute

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/show"
)

// A Cache is a binary cache that paths are taken from. Its methods may be called
// concurrently.
type Cache struct {
	Files    Files
	StoreDir nix.StoreDir
	// Accept refuses what the cache says of a path, if nobody vouches for it. Nil
	// takes everything.
	Accept func(*nix.PathInfo) error
	// Priority decides which cache is asked first, the one with the lowest; 0: as the
	// cache says of itself.
	Priority int

	asked sync.Once
	info  CacheInfo
	err   error // of asking
}

// A RefusedError says that a cache has a path but cannot be believed in that.
type RefusedError struct {
	Cache string
	Path  nix.StorePath
	Err   error
}

func (e *RefusedError) Error() string { return fmt.Sprintf("%s in %s: %v", e.Path, e.Cache, e.Err) }
func (e *RefusedError) Unwrap() error { return e.Err }

// Info returns what the cache says of itself. It is asked once.
func (c *Cache) Info(ctx context.Context) (CacheInfo, error) {
	c.asked.Do(func() { c.info, c.err = c.askInfo(ctx) })
	return c.info, c.err
}

func (c *Cache) askInfo(ctx context.Context) (CacheInfo, error) {
	text, err := readFile(ctx, c.Files, CacheInfoName)
	if errors.Is(err, fs.ErrNotExist) {
		return CacheInfo{}, fmt.Errorf("it has no %s: this is no binary cache", CacheInfoName)
	}
	if err != nil {
		return CacheInfo{}, err
	}
	info, err := ParseCacheInfo(c.StoreDir, text)
	if c.Priority != 0 {
		info.Priority = c.Priority
	}
	return info, err
}

// readFile reads a small file.
func readFile(ctx context.Context, files Files, name string) ([]byte, error) {
	f, err := files.Open(ctx, name, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, MaxNARInfo+1))
	if err == nil && len(text) > MaxNARInfo {
		err = fmt.Errorf("%s/%s has more than %d bytes", files, name, MaxNARInfo)
	}
	return text, err
}

// NARInfo asks for one path. The error wraps fs.ErrNotExist if the cache has not got
// it, and is a *RefusedError if what it says cannot be used.
func (c *Cache) NARInfo(ctx context.Context, p nix.StorePath) (*NARInfo, error) {
	text, err := readFile(ctx, c.Files, NARInfoName(p))
	if err != nil {
		return nil, err
	}
	return c.believe(p, text)
}

// believe reads the narinfo of p and decides whether it can be used.
func (c *Cache) believe(p nix.StorePath, text []byte) (*NARInfo, error) {
	n, err := ParseNARInfo(c.StoreDir, text)
	switch {
	case err != nil:
		err = fmt.Errorf("%w: %w", err, nix.ErrDamaged)
	case n.Path != p:
		err = fmt.Errorf("its narinfo is about %s: %w", n.Path, nix.ErrDamaged)
	case !n.Compression.readable():
		err = n.Compression.unknown()
	case c.Accept != nil:
		err = c.Accept(&n.PathInfo)
	}
	if err != nil {
		return nil, &RefusedError{c.Files.String(), p, err}
	}
	return n, nil
}

// Open returns the NAR that n describes: exactly n.NARSize bytes. The last of them are
// handed out when the compressed file has turned out to be whole; whether they have
// n.NARHash is left to the reader, who hashes them anyway. The error wraps
// nix.ErrDamaged if the file is not what n says.
func (c *Cache) Open(ctx context.Context, n *NARInfo) (io.ReadCloser, error) {
	raw, err := c.Files.Open(ctx, n.URL, 0)
	if err != nil {
		return nil, err
	}
	r, err := newNARReader(n, raw)
	if err != nil {
		return nil, errors.Join(c.damaged(n, err), raw.Close())
	}
	return &namedReader{r, c, n}, nil
}

// damaged names the file in an error.
func (c *Cache) damaged(n *NARInfo, err error) error {
	return fmt.Errorf("%s in %s: %s: %w", n.Path.Base(), c.Files, show.URL(n.URL), err)
}

// A namedReader says which NAR its errors are about.
type namedReader struct {
	*narReader
	cache *Cache
	info  *NARInfo
}

func (r *namedReader) Read(p []byte) (int, error) {
	n, err := r.narReader.Read(p)
	if err != nil && err != io.EOF {
		err = r.cache.damaged(r.info, err)
	}
	return n, err
}

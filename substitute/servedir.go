package substitute

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// NewDirServer returns a Server of the files of a cache that was made before. It is an
// error if dir holds none.
func NewDirServer(dir Dir, o ServerOptions) (*Server, error) {
	cache := dirCache{dir}
	if _, err := cache.info(context.Background()); err != nil {
		return nil, fmt.Errorf("serve %s: %w", dir, err)
	}
	return newServer(cache, o), nil
}

type dirCache struct{ dir Dir }

// info implements served.
func (c dirCache) info(ctx context.Context) (CacheInfo, error) {
	text, err := c.read(ctx, CacheInfoName)
	if errors.Is(err, fs.ErrNotExist) {
		return CacheInfo{}, fmt.Errorf("there is no cache: %w", err)
	}
	if err != nil {
		return CacheInfo{}, err
	}
	return ParseCacheInfo(storeDirOf(text), text)
}

// storeDirOf returns the store directory that a cache claims to be for.
func storeDirOf(text []byte) nix.StoreDir {
	for line := range strings.Lines(string(text)) {
		if dir, ok := strings.CutPrefix(line, "StoreDir:"); ok {
			return nix.StoreDir(strings.TrimSpace(dir))
		}
	}
	return nix.DefaultStoreDir
}

// read returns a short file.
func (c dirCache) read(ctx context.Context, name string) ([]byte, error) {
	f, err := c.dir.Open(ctx, name, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxNARInfo+1))
}

// list implements served. What is no narinfo, or damaged, is left out.
func (c dirCache) list(ctx context.Context) ([]nix.StorePath, error) {
	files, err := c.dir.List(ctx, "")
	if err != nil {
		return nil, err
	}
	info, err := c.info(ctx)
	if err != nil {
		return nil, err
	}
	var paths []nix.StorePath
	for name := range files {
		if !strings.HasSuffix(name, ".narinfo") {
			continue
		}
		if n, err := c.parse(ctx, info.StoreDir, name); err == nil {
			paths = append(paths, n.Path)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return paths, nil
}

// lookup implements served.
func (c dirCache) lookup(ctx context.Context, part string) (*NARInfo, error) {
	info, err := c.info(ctx)
	if err != nil {
		return nil, err
	}
	return c.parse(ctx, info.StoreDir, part+".narinfo")
}

func (c dirCache) parse(ctx context.Context, dir nix.StoreDir, name string) (*NARInfo, error) {
	text, err := c.read(ctx, name)
	if err != nil {
		return nil, err
	}
	return ParseNARInfo(dir, text)
}

// serve implements served. Files are replaced as a whole, never changed.
func (c dirCache) serve(s *Server, res *response, r *http.Request, name string) error {
	path, err := c.dir.path(name)
	if err != nil {
		return fs.ErrNotExist
	}
	f, err := os.Open(path)
	if err != nil {
		return missing(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() {
		return c.serve(s, res, r, name+"/index.html") // of a channel
	}
	if !info.Mode().IsRegular() {
		return fs.ErrNotExist
	}
	h := res.Header()
	h.Set("Content-Type", contentType(name))
	h.Set("Cache-Control", keepInfo)
	if strings.HasPrefix(name, "nar/") {
		h.Set("Cache-Control", keepForever)
		if r.Method == http.MethodGet {
			leave, err := s.transfer(r.Context())
			if err != nil {
				return err
			}
			defer leave()
		}
	}
	h.Set("ETag", fmt.Sprintf(`"%x-%x"`, info.ModTime().UnixNano(), info.Size()))
	http.ServeContent(res, r, "", info.ModTime(), f)
	return nil
}

// missing makes fs.ErrNotExist of the errors that say so in other words.
func missing(err error) error {
	if errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ENAMETOOLONG) {
		return fs.ErrNotExist
	}
	return err
}

// contentType goes by the name, as Nix does on upload.
func contentType(name string) string {
	switch {
	case name == CacheInfoName:
		return "text/x-nix-cache-info"
	case strings.HasPrefix(name, "log/"):
		return "text/plain; charset=utf-8"
	}
	switch filepath.Ext(name) {
	case ".narinfo":
		return "text/x-nix-narinfo"
	case ".ls", ".doi", ".debug":
		return "application/json"
	case ".nar":
		return "application/x-nix-nar"
	case ".html":
		return "text/html; charset=utf-8"
	}
	if strings.HasPrefix(name, "nar/") {
		return "application/x-nix-nar"
	}
	return "application/octet-stream"
}

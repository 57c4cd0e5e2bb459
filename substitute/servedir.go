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
		return CacheInfo{}, fmt.Errorf("it has no %s, so it is no cache: %w", CacheInfoName, err)
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

// open opens a file of the cache. Whoever may write the directory may not make us read
// what lies elsewhere: links are followed within it, and those out of it lead nowhere, as
// does what is neither a file nor a directory. The directory is opened anew each time,
// as it may be replaced.
func (c dirCache) open(name string) (*os.File, fs.FileInfo, error) {
	root, err := os.OpenRoot(string(c.dir))
	if err != nil {
		return nil, nil, err
	}
	defer root.Close()
	f, err := root.OpenFile(name, openFlags, 0)
	if err != nil {
		return nil, nil, missing(err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

// read returns a short file.
func (c dirCache) read(_ context.Context, name string) ([]byte, error) {
	f, _, err := c.open(name)
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
	f, info, err := c.open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if info.IsDir() {
		return c.serve(s, res, r, name+"/index.html") // of a channel
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

// missing makes fs.ErrNotExist of the errors that say so in other words: of all but
// those of a disk or a limit. Of links that lead out of a directory os.Root says in a
// way of its own that it cannot open them.
func missing(err error) error {
	for _, serious := range []error{syscall.EIO, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EACCES} {
		if errors.Is(err, serious) {
			return err
		}
	}
	return fs.ErrNotExist
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

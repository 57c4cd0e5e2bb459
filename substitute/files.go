package substitute

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/copy-closure/copy-closure/internal/show"
)

// Files are the files of a cache, wherever they lie, by their names relative to
// its root: "nix-cache-info", "nar/….nar.zst". Methods may be called concurrently.
type Files interface {
	// Open returns a file's contents from offset on. The error wraps fs.ErrNotExist
	// if there is no such file.
	Open(ctx context.Context, name string, offset int64) (io.ReadCloser, error)
	// String is the cache's URL, for people; it holds no password.
	String() string
}

// checkFileName returns an error unless name is relative and stays below the root of a cache.
func checkFileName(name string) error {
	if !fs.ValidPath(name) || name == "." {
		return fmt.Errorf("%.200q is not the name of a file in a cache", show.URL(name))
	}
	return nil
}

// WritableFiles can be changed, too.
type WritableFiles interface {
	Files
	// Put makes the file or replaces it. Readers find the old contents or the new
	// ones, never a part. size is that of contents in bytes, which may be read again
	// from its beginning after a failure.
	Put(ctx context.Context, name string, contents io.ReadSeeker, size int64) error
	// Size returns a file's size in bytes. The error wraps fs.ErrNotExist if there is
	// no such file.
	Size(ctx context.Context, name string) (int64, error)
	// Remove deletes a file; one that is not there is no error.
	Remove(ctx context.Context, name string) error
}

// ListableFiles can tell what is there.
type ListableFiles interface {
	Files
	// List returns the files whose names begin with prefix: "" for those beside
	// nix-cache-info, or a directory with its slash. Other directories are left out.
	List(ctx context.Context, prefix string) (map[string]File, error)
}

// A File is what a listing tells of a file.
type File struct {
	Size     int64 // bytes
	Modified time.Time
}

// SweptFiles may hold what a killed process was writing.
type SweptFiles interface {
	// Sweep deletes such files, of which there are none where a file appears as a whole.
	// It leaves alone what somebody may still be writing.
	Sweep(ctx context.Context) error
}

// Leftover is the age of a file from which on nobody is writing it any more.
const Leftover = 24 * time.Hour

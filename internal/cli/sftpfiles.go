package cli

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/url"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/copy-closure/copy-closure/internal/show"
	"github.com/copy-closure/copy-closure/substitute"
	"github.com/copy-closure/copy-closure/transport"
)

// sftpFiles is a cache in a directory behind SSH, sftp://[user@]host[:port]/dir.
type sftpFiles struct {
	*transport.SFTP
	address string
	dir     string
}

// openSFTP logs in. The connection ends with the program.
func (p *program) openSFTP(ctx context.Context, address string) (*sftpFiles, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Path == "" || u.Path == "/" {
		return nil, usagef("cache %s: write it as sftp://[USER@]HOST[:PORT]/DIR", show.URL(address))
	}
	host := u.Host
	if u.User != nil {
		host = u.User.Username() + "@" + host
	}
	destination, err := transport.ParseDestination(host)
	if err != nil {
		return nil, usagef("cache %s: %v", show.URL(address), err)
	}
	words, err := p.clientOptions()
	if err != nil {
		return nil, err
	}
	conn, err := transport.Dial(ctx, destination, transport.Options{SSHOptions: words, Prompter: prompter(), Logger: p.log})
	if err != nil {
		return nil, err
	}
	files, err := transport.OpenSFTP(ctx, conn)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	p.atEnd = append(p.atEnd, files.Close, conn.Close)
	return &sftpFiles{files, "sftp://" + host + u.Path, path.Clean(u.Path)}, nil
}

// String implements substitute.Files.
func (f *sftpFiles) String() string { return f.address }

// path is where a file lies; its name may not lead elsewhere.
func (f *sftpFiles) path(name string) (string, error) {
	if !fs.ValidPath(name) || name == "." {
		return "", &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	return path.Join(f.dir, name), nil
}

// Open implements substitute.Files.
func (f *sftpFiles) Open(_ context.Context, name string, offset int64) (io.ReadCloser, error) {
	full, err := f.path(name)
	if err != nil {
		return nil, err
	}
	return f.SFTP.Open(full, offset)
}

// Put implements substitute.WritableFiles; directories are made when they turn out to
// be missing.
func (f *sftpFiles) Put(ctx context.Context, name string, contents io.ReadSeeker, size int64) error {
	full, err := f.path(name)
	if err != nil {
		return err
	}
	for first := true; ; first = false {
		if _, err := contents.Seek(0, io.SeekStart); err != nil {
			return err
		}
		err := f.WriteFile(full, contextReader{ctx, contents}, 0o644)
		if !first || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := f.MkdirAll(path.Dir(full)); err != nil {
			return err
		}
	}
}

// A contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// Size implements substitute.WritableFiles.
func (f *sftpFiles) Size(_ context.Context, name string) (int64, error) {
	full, err := f.path(name)
	if err != nil {
		return 0, err
	}
	info, err := f.Stat(full)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// List implements substitute.ListableFiles. Files that begin with a dot are being
// written, or are those that a killed process has left.
func (f *sftpFiles) List(_ context.Context, prefix string) (map[string]substitute.File, error) {
	list, err := f.ReadDir(path.Join(f.dir, prefix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	files := make(map[string]substitute.File)
	for _, info := range list {
		if !info.IsDir() && !strings.HasPrefix(info.Name(), ".") {
			files[prefix+info.Name()] = substitute.File{Size: info.Size(), Modified: info.ModTime()}
		}
	}
	return files, nil
}

// Remove implements substitute.WritableFiles.
func (f *sftpFiles) Remove(_ context.Context, name string) error {
	full, err := f.path(name)
	if err != nil {
		return err
	}
	if err := f.SFTP.Remove(full); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// leftoverName is that of a file which transport.SFTP was writing.
var leftoverName = regexp.MustCompile(`^\..+\.[A-Z2-7]{26}$`)

// Sweep implements substitute.SweptFiles.
func (f *sftpFiles) Sweep(context.Context) error {
	for _, dir := range []string{f.dir, path.Join(f.dir, "nar")} {
		list, err := f.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, info := range list {
			if !leftoverName.MatchString(info.Name()) || time.Since(info.ModTime()) < substitute.Leftover {
				continue
			}
			if err := f.SFTP.Remove(path.Join(dir, info.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

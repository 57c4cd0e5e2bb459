package substitute

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A Channel is what nix-channel subscribes to: expressions, beside the cache that has
// what they make. Its files lie in the directory Name of a cache.
type Channel struct {
	Name        string
	Expressions []string        // files and directories that become the channel's top
	Revision    string          // of the expressions in git; empty: not known
	CacheURL    string          // how consumers reach the cache
	Paths       []nix.StorePath // all that the cache has for it
}

// channelEntry is the file by which a channel is imported.
const channelEntry = "default.nix"

// channelName is what nix-channel takes, and safe in a URL.
var channelName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)

// channelPage is for people, and for nix-channel, which wants to find something at the
// channel's address itself.
const channelPage = `<!DOCTYPE html>
<meta charset="utf-8">
<title>Nix channel %[1]s</title>
<p>This is the Nix channel %[1]s: <code>nix-channel --add</code> the address of this
page, then <code>nix-channel --update</code>.</p>
`

// Check returns an error if Name or Expressions make no channel.
func (c *Channel) Check() error {
	if !channelName.MatchString(c.Name) || c.Name == "nar" || c.Name == "log" {
		return fmt.Errorf("%.100q cannot be the name of a channel", c.Name)
	}
	if err := checkTop(c.Expressions); err != nil {
		return err
	}
	return XZ.CheckWritable(0)
}

// checkTop wants one default.nix among what becomes the top, and nothing twice.
func checkTop(expressions []string) error {
	seen := make(map[string]bool)
	for _, name := range expressions {
		entries, err := topEntries(name)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if seen[filepath.Base(entry)] {
				return fmt.Errorf("%s: the channel has a file of that name already", entry)
			}
			seen[filepath.Base(entry)] = true
		}
	}
	if !seen[channelEntry] {
		return fmt.Errorf("the expressions have no %s, by which a channel is imported", channelEntry)
	}
	return nil
}

// topEntries are what an argument brings to the top of a channel: a file itself, a
// directory what is in it.
func topEntries(name string) ([]string, error) {
	info, err := os.Stat(name)
	if err != nil || !info.IsDir() {
		return []string{name}, err
	}
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, entry := range entries {
		if entry.Name() != ".git" {
			list = append(list, filepath.Join(name, entry.Name()))
		}
	}
	return list, nil
}

// Publish puts the channel beside the cache, which must have all of its paths already.
// The expressions come last, so that whoever updates sees the old channel or the new
// one.
func (c *Channel) Publish(ctx context.Context, files WritableFiles) error {
	paths := slices.Clone(c.Paths)
	slices.SortFunc(paths, nix.StorePath.Compare)
	for _, f := range []struct {
		name string
		xz   bool
		fill func(io.Writer) error
	}{
		{"store-paths.xz", true, func(w io.Writer) error { return writeLines(w, paths) }},
		{"git-revision", false, func(w io.Writer) error { return writeText(w, c.Revision) }},
		{"binary-cache-url", false, func(w io.Writer) error { return writeText(w, c.CacheURL) }},
		{"index.html", false, func(w io.Writer) error { return writeText(w, fmt.Sprintf(channelPage, c.Name)) }},
		{"nixexprs.tar.xz", true, c.writeTar},
	} {
		name := path.Join(c.Name, f.name)
		if f.name == "git-revision" && c.Revision == "" {
			if err := files.Remove(ctx, name); err != nil {
				return err
			}
			continue
		}
		if err := putFilled(ctx, files, name, f.xz, f.fill); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// putFilled makes a file of what fill writes.
func putFilled(ctx context.Context, files WritableFiles, name string, xz bool, fill func(io.Writer) error) (err error) {
	s, err := newSpool(files, path.Dir(name))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	var w io.WriteCloser = unchanged{s}
	if xz {
		if w, err = newXZWriter(ctx, s, 0); err != nil {
			return err
		}
	}
	if err := errors.Join(fill(w), w.Close()); err != nil {
		return err
	}
	return s.put(ctx, files, name)
}

func writeText(w io.Writer, text string) error {
	_, err := io.WriteString(w, text)
	return err
}

func writeLines(w io.Writer, paths []nix.StorePath) error {
	for _, p := range paths {
		if err := writeText(w, p.String()+"\n"); err != nil {
			return err
		}
	}
	return nil
}

// writeTar writes the expressions below one directory, as Nix wants it. The same
// expressions make the same bytes.
func (c *Channel) writeTar(w io.Writer) error {
	t := tar.NewWriter(w)
	if err := t.WriteHeader(tarHeader(tar.TypeDir, c.Name+"/", 0o755)); err != nil {
		return err
	}
	for _, name := range c.Expressions {
		entries, err := topEntries(name)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if err := c.addTree(t, entry); err != nil {
				return err
			}
		}
	}
	return t.Close()
}

func tarHeader(kind byte, name string, mode int64) *tar.Header {
	return &tar.Header{Typeflag: kind, Name: name, Mode: mode, ModTime: time.Unix(1, 0)}
}

// addTree adds a file, or a directory with all in it, to the top.
func (c *Channel) addTree(t *tar.Writer, top string) error {
	return filepath.WalkDir(top, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		inside, err := filepath.Rel(filepath.Dir(top), file)
		if err != nil {
			return err
		}
		name := path.Join(c.Name, filepath.ToSlash(inside))
		switch {
		case entry.IsDir():
			return t.WriteHeader(tarHeader(tar.TypeDir, name+"/", 0o755))
		case entry.Type() == fs.ModeSymlink:
			h := tarHeader(tar.TypeSymlink, name, 0o777)
			if h.Linkname, err = os.Readlink(file); err != nil {
				return err
			}
			return t.WriteHeader(h)
		case entry.Type().IsRegular():
			return addFile(t, name, file)
		}
		return fmt.Errorf("%s is neither file, directory nor symbolic link", file)
	})
}

func addFile(t *tar.Writer, name, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h := tarHeader(tar.TypeReg, name, 0o644)
	if info.Mode()&0o100 != 0 {
		h.Mode = 0o755
	}
	h.Size = info.Size()
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}

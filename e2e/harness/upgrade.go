package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Rebuilt puts made-up packages into the store as they are before (false) or after
// (true) a rebuild that changed nothing but the store paths: contents are the same,
// but for the hash parts in them. Every eighth file names a reference of its package.
// They are kept in [CacheDir].
func Rebuilt(ctx context.Context, s *Store, n int, size int64, after bool) (*Closure, error) {
	name := fmt.Sprintf("rebuilt-%d-%d", n, size)
	before, err := cached(name+"-before", func(dir string) ([]Object, error) {
		return makeLinked(ctx, dir, n, size)
	})
	if err != nil || !after {
		return before.addedTo(ctx, s, err)
	}
	rebuilt, err := cached(name+"-after", func(dir string) ([]Object, error) {
		return rebuild(ctx, dir, before)
	})
	return rebuilt.addedTo(ctx, s, err)
}

func (c *cachedClosure) addedTo(ctx context.Context, s *Store, err error) (*Closure, error) {
	if err != nil {
		return nil, err
	}
	return c.Closure, c.addTo(ctx, s)
}

// makeLinked makes packages whose files name their references.
func makeLinked(ctx context.Context, dir string, n int, size int64) ([]Object, error) {
	objects, err := makePackages(ctx, dir, n, size)
	if err != nil {
		return nil, err
	}
	for _, o := range objects {
		if err := nameRefs(filepath.Join(dir, "contents", filepath.Base(o.Path)), o.Refs); err != nil {
			return nil, err
		}
	}
	return objects, hashAll(ctx, dir, objects)
}

// nameRefs appends one of refs to every eighth file of a tree.
func nameRefs(tree string, refs []string) error {
	if len(refs) == 0 {
		return nil
	}
	count := 0
	return walkFiles(tree, func(file string, info fs.FileInfo) error {
		count++
		if count%8 != 0 {
			return nil
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		text = fmt.Appendf(text, "\n%s/lib\n", refs[count/8%len(refs)])
		return errors.Join(os.Chmod(file, 0o644), os.WriteFile(file, text, 0o644), os.Chmod(file, info.Mode()))
	})
}

func walkFiles(tree string, f func(file string, info fs.FileInfo) error) error {
	return filepath.WalkDir(tree, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		return f(path, info)
	})
}

// rebuild copies packages under new store paths, with the new hash parts in place of
// the old ones.
func rebuild(ctx context.Context, dir string, before *cachedClosure) ([]Object, error) {
	after := make(map[string]string, len(before.Paths))
	var hashParts []string // old, new, old, new
	for _, o := range before.Paths {
		base := filepath.Base(o.Path)
		p := storePath("rebuilt "+base, base[33:])
		after[o.Path] = p
		hashParts = append(hashParts, base[:32], filepath.Base(p)[:32])
	}
	replacer := strings.NewReplacer(hashParts...)
	objects := make([]Object, len(before.Paths))
	for i, o := range before.Paths {
		objects[i].Path = after[o.Path]
		for _, ref := range o.Refs {
			objects[i].Refs = append(objects[i].Refs, after[ref])
		}
		slices.Sort(objects[i].Refs)
		from := filepath.Join(before.dir, "contents", filepath.Base(o.Path))
		to := filepath.Join(dir, "contents", filepath.Base(after[o.Path]))
		if out, err := exec.CommandContext(ctx, "cp", "-a", from, to).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("cp -a: %w: %s", err, bytes.TrimSpace(out))
		}
		if err := replaceIn(to, replacer); err != nil {
			return nil, err
		}
	}
	return objects, hashAll(ctx, dir, objects)
}

func replaceIn(tree string, replacer *strings.Replacer) error {
	return walkFiles(tree, func(file string, info fs.FileInfo) error {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		replaced := []byte(replacer.Replace(string(text)))
		if bytes.Equal(replaced, text) {
			return nil
		}
		return errors.Join(os.Chmod(file, 0o644), os.WriteFile(file, replaced, 0o644), os.Chmod(file, info.Mode()))
	})
}

// upgradedPackages are those of which Debian offers two versions most of the time: that
// of the stable release and that of its security updates. Unpacked they have about
// 400 MB. Those of which there is only one version are left out.
var upgradedPackages = []string{
	"libreoffice-core", "openjdk-17-jre-headless", "git", "libc6", "libssl3", "openssl",
	"python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libpython3.11",
	"postgresql-15", "php8.2-cli", "bind9-libs", "samba-libs", "libavcodec59", "vim-runtime",
	"libxml2", "curl", "libcurl4", "libgnutls30", "linux-libc-dev", "libc6-dev", "libc-bin",
	"apache2-bin", "krb5-locales", "libexpat1", "libsqlite3-0", "mariadb-server-core",
}

// Upgraded puts real packages into the store in the version before (false) or after
// (true) an upgrade, as Debian offers it. They are kept in [CacheDir].
func Upgraded(ctx context.Context, s *Store, after bool) (*Closure, error) {
	which := 1
	if after {
		which = 0
	}
	c, err := cached(fmt.Sprintf("upgraded-%d", which), func(dir string) ([]Object, error) {
		return makeUpgraded(ctx, dir, which)
	})
	return c.addedTo(ctx, s, err)
}

// makeUpgraded unpacks the newest (0) or the one before (1) of the versions.
func makeUpgraded(ctx context.Context, dir string, which int) ([]Object, error) {
	var packages []debianPackage
	for _, name := range upgradedPackages {
		versions, err := packageVersions(ctx, name)
		if err != nil {
			return nil, err
		}
		if len(versions) > 1 {
			packages = append(packages, debianPackage{name: name, version: versions[which]})
		}
	}
	if len(packages) == 0 {
		return nil, errors.New("apt-cache offers two versions of no package; is apt-get update due?")
	}
	debs := filepath.Join(dir, "debs")
	if err := downloadPackages(ctx, debs, packages); err != nil {
		return nil, err
	}
	objects, err := unpackPackages(ctx, dir, debs, packages)
	if err != nil {
		return nil, err
	}
	return objects, errors.Join(hashAll(ctx, dir, objects), os.RemoveAll(debs))
}

// packageVersions returns what apt-cache offers, the newest first.
func packageVersions(ctx context.Context, name string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", "madison", "--", name).Output()
	if err != nil {
		return nil, fmt.Errorf("apt-cache madison: %w", err)
	}
	var versions []string
	for line := range strings.Lines(string(out)) {
		if fields := strings.Split(line, "|"); len(fields) == 3 {
			versions = append(versions, strings.TrimSpace(fields[1]))
		}
	}
	slices.SortStableFunc(versions, func(a, b string) int {
		if exec.CommandContext(ctx, "dpkg", "--compare-versions", a, "gt", b).Run() == nil {
			return -1
		}
		return 1
	})
	return slices.Compact(versions), nil
}

package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// debianRoots are the packages whose dependencies become closures. About 40
// packages, 100 MB, are reached within the first.
var debianRoots = []string{
	"git", "python3", "vim", "gcc", "nginx", "postgresql", "emacs-nox", "clang",
	"golang-go", "texlive-base", "libreoffice-core", "qemu-system-x86",
}

// DebianClosure puts a closure of n real packages into the store. Each Debian
// package becomes one path, unpacked, that refers to the packages it depends
// on; circles are broken, and dependencies beyond the n packages left out. The
// packages come from apt-get download and are kept in [CacheDir].
func DebianClosure(ctx context.Context, s *Store, n int) (*Closure, error) {
	c, err := cached(fmt.Sprintf("debian-%d", n), func(dir string) ([]Object, error) {
		return makeDebian(ctx, dir, n)
	})
	if err != nil {
		return nil, err
	}
	return c.Closure, c.addTo(ctx, s)
}

func makeDebian(ctx context.Context, dir string, n int) ([]Object, error) {
	packages, err := choosePackages(ctx, n)
	if err != nil {
		return nil, err
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

// A debianPackage is what apt says about a package.
type debianPackage struct {
	name, version string
	depends       []string // first alternatives only
}

// choosePackages returns n packages, dependencies before dependents.
func choosePackages(ctx context.Context, n int) ([]debianPackage, error) {
	known := make(map[string]debianPackage)
	asked := make(map[string]bool)
	var found []string // breadth first
	for _, root := range debianRoots {
		for level := []string{root}; len(level) > 0 && len(found) < n; {
			packages, err := showPackages(ctx, level)
			if err != nil {
				return nil, err
			}
			level = nil
			for _, p := range packages {
				known[p.name] = p
				found = append(found, p.name)
				for _, d := range p.depends {
					if !asked[d] {
						asked[d] = true
						level = append(level, d)
					}
				}
			}
		}
	}
	if len(found) < n {
		return nil, fmt.Errorf("apt-cache knows %d of the %d packages wanted; is apt-get update due?", len(found), n)
	}
	return dependenciesFirst(found[:n], known), nil
}

// dependenciesFirst orders the chosen packages and cuts their dependencies
// down to what comes before them, which breaks circles always at the same
// place.
func dependenciesFirst(chosen []string, known map[string]debianPackage) []debianPackage {
	var order []debianPackage
	done, entered := make(map[string]bool), make(map[string]bool)
	var visit func(string)
	visit = func(name string) {
		if entered[name] || !slices.Contains(chosen, name) {
			return
		}
		entered[name] = true
		p := known[name]
		for _, d := range p.depends {
			visit(d)
		}
		p.depends = slices.DeleteFunc(slices.Clone(p.depends), func(d string) bool { return !done[d] })
		done[name] = true
		order = append(order, p)
	}
	for _, name := range chosen {
		visit(name)
	}
	return order
}

// showPackages asks apt-cache about packages. Names that are only virtual are
// left out of the answer.
func showPackages(ctx context.Context, names []string) ([]debianPackage, error) {
	args := append([]string{"show", "--no-all-versions", "--"}, names...)
	out, err := exec.CommandContext(ctx, "apt-cache", args...).Output()
	// apt-cache exits with 100 if a name is unknown and still shows the rest.
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return nil, err
	}
	var packages []debianPackage
	for stanza := range strings.SplitSeq(string(out), "\n\n") {
		if p := parsePackage(stanza); p.name != "" {
			packages = append(packages, p)
		}
	}
	return packages, nil
}

func parsePackage(stanza string) debianPackage {
	var p debianPackage
	for line := range strings.Lines(stanza) {
		field, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch field {
		case "Package":
			p.name = value
		case "Version":
			p.version = value
		case "Depends", "Pre-Depends":
			for d := range strings.SplitSeq(value, ",") {
				// "perl:any (>= 5) | other" means perl to us.
				name, _, _ := strings.Cut(strings.TrimSpace(d), " ")
				name, _, _ = strings.Cut(name, ":")
				p.depends = append(p.depends, name)
			}
		}
	}
	slices.Sort(p.depends)
	p.depends = slices.Compact(p.depends)
	return p
}

func downloadPackages(ctx context.Context, dir string, packages []debianPackage) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// Root's apt-get otherwise complains that its sandbox user may not write
	// here.
	args := []string{"-q", "-o", "APT::Sandbox::User=root", "download", "--"}
	for _, p := range packages {
		args = append(args, p.name+"="+p.version)
	}
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get download: %w: %s (is apt-get update due?)", err, bytes.TrimSpace(out))
	}
	return nil
}

var notInNames = regexp.MustCompile(`[^0-9a-zA-Z+._?=-]`)

// unpackPackages makes one tree of each package, not yet canonical.
func unpackPackages(ctx context.Context, dir, debs string, packages []debianPackage) ([]Object, error) {
	paths := make(map[string]string)
	var objects []Object
	for _, p := range packages {
		name := notInNames.ReplaceAllString(p.name+"-"+p.version, "_")
		o := Object{Path: storePath("debian", name)}
		paths[p.name] = o.Path
		for _, d := range p.depends {
			o.Refs = append(o.Refs, paths[d])
		}
		slices.Sort(o.Refs)
		tree := filepath.Join(dir, "contents", filepath.Base(o.Path))
		files, err := filepath.Glob(filepath.Join(debs, p.name+"_*.deb"))
		if err != nil || len(files) != 1 {
			return nil, fmt.Errorf("%s: %d files downloaded, want one", p.name, len(files))
		}
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", files[0], tree).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("dpkg-deb -x %s: %w: %s", files[0], err, out)
		}
		if err := writeRefs(tree, o.Refs); err != nil {
			return nil, err
		}
		objects = append(objects, o)
	}
	return objects, nil
}

// writeRefs puts the references into a file of the tree, so that a scan for
// them finds what the database says.
func writeRefs(tree string, refs []string) error {
	dir := filepath.Join(tree, "nix-support")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "propagated-build-inputs"), []byte(strings.Join(refs, " ")+"\n"), 0o644)
}

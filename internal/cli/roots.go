package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/copy-closure/copy-closure/internal/farend"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/remote"
	"github.com/copy-closure/copy-closure/transport"
)

// A rootRequest says what should keep the copied paths from garbage collection.
type rootRequest struct {
	links   []string // one for each path, or none
	profile string
}

func (q rootRequest) empty() bool { return len(q.links) == 0 && q.profile == "" }

// files are the names to be made.
func (q rootRequest) files() []string {
	if q.profile == "" {
		return q.links
	}
	return append(slices.Clone(q.links), q.profile)
}

// check compares the request with the number of paths.
func (q rootRequest) check(paths int) error {
	switch {
	case len(q.links) > 0 && len(q.links) != paths:
		return usagef("--add-root takes one LINK for each PATH: there are %d and %d", len(q.links), paths)
	case q.profile != "" && paths != 1:
		return usagef("--profile takes one PATH, which becomes the new generation; there are %d", paths)
	}
	return nil
}

// A rooter is an end of the copy where roots can be made.
type rooter interface {
	// checkRoots fails where makeRoots could not do what is asked, as far as that
	// can be known. It changes nothing.
	checkRoots(ctx context.Context, q rootRequest) error
	// makeRoots makes the roots while temporary roots still hold the paths.
	makeRoots(ctx context.Context, q rootRequest, paths []nix.StorePath, result *copyResult) error
}

// checkRootsScript looks for the program $1 and whether the files named after it
// can be made.
const checkRootsScript = `command -v "$1" >/dev/null 2>&1 || { echo "there is no $1 in PATH" >&2; exit 1; }
shift
for f do
  case $f in /*) ;; *) f="$PWD/$f";; esac
  d=$(dirname "$f")
  while ! [ -e "$d" ]; do d=$(dirname "$d"); done
  [ -w "$d" ] || { echo "$d is not writable" >&2; exit 1; }
done`

var errForced = errors.New("make roots: the account runs a forced command and nothing else; copy without --add-root and --profile, or as a user with a shell")

func (f *farEnd) checkRoots(ctx context.Context, q rootRequest) error {
	if q.empty() {
		return nil
	}
	if f.Forced() {
		return errForced
	}
	if f.host.program != "" { // perhaps under sudo: its rights are not ours
		return f.tryRootPrograms(ctx, q)
	}
	_, err := f.output(ctx, remote.Command(checkRootsScript, append([]string{f.nixStore()}, q.files()...)...))
	if err != nil {
		return fmt.Errorf("make roots: %w", err)
	}
	return nil
}

// tryScript starts programs, each in some words, and says which of them fails and how.
const tryScript = `echo @here
for program do
  said=$($program --version 2>&1) || { echo "$program: $said"; exit; }
done`

// tryRootPrograms fails where the account may start a named program for a copy only, by
// a forced command or by sudo.
func (f *farEnd) tryRootPrograms(ctx context.Context, q rootRequest) error {
	programs := []string{f.nixStore()}
	if q.profile != "" && !f.ours() {
		programs = append(programs, f.nixEnv())
	}
	text, err := f.output(ctx, remote.Command(tryScript, programs...))
	_, failed, here := strings.Cut(text, "@here\n")
	switch {
	case !here:
		return errors.Join(errForced, err)
	case failed != "":
		return fmt.Errorf("make roots: this account may not start %.300q; copy without --add-root and --profile, or let it", strings.TrimSpace(failed))
	}
	return nil
}

func (f *farEnd) makeRoots(ctx context.Context, q rootRequest, paths []nix.StorePath, result *copyResult) error {
	if q.empty() {
		return nil
	}
	if err := f.linkRoots(ctx, q, paths, result); err != nil || f.ours() {
		return err
	}
	// A collection that looked for roots before there were links, and has not looked
	// at temporary roots yet, would find neither if we went now: it is told once more.
	_, err := f.ValidPaths(ctx, paths, true, false)
	return err
}

func (f *farEnd) linkRoots(ctx context.Context, q rootRequest, paths []nix.StorePath, result *copyResult) error {
	for i, link := range q.links {
		if err := f.rootCommand(ctx, f.addRootCommand(link, paths[i])); err != nil {
			return fmt.Errorf("add root %s for %s: %w", link, paths[i], err)
		}
		result.Roots = append(result.Roots, link)
	}
	if q.profile == "" {
		return nil
	}
	if err := f.rootCommand(ctx, f.setProfileCommand(q.profile, paths[0])); err != nil {
		return fmt.Errorf("set profile %s to %s: %w", q.profile, paths[0], err)
	}
	result.Roots = append(result.Roots, q.profile)
	return nil
}

func (f *farEnd) addRootCommand(link string, p nix.StorePath) []string {
	if f.ours() {
		return []string{f.Program(), "store", "add-root", link, p.String()}
	}
	return []string{f.nixStore(), "-r", p.String(), "--add-root", link, "--indirect"}
}

func (f *farEnd) setProfileCommand(profile string, p nix.StorePath) []string {
	if f.ours() {
		return []string{f.Program(), "store", "set-profile", profile, p.String()}
	}
	return []string{f.nixEnv(), "-p", profile, "--set", p.String()}
}

// nixEnv is nix-env beside nixStore.
func (f *farEnd) nixEnv() string {
	return strings.TrimSuffix(f.nixStore(), "nix-store") + "nix-env"
}

// ours reports whether the far end is copy-closure.
func (f *farEnd) ours() bool { return remote.IsOurs(f.Program()) }

// nixStore is Program with nix-store in place of the daemon beside it.
func (f *farEnd) nixStore() string {
	if front, ok := strings.CutSuffix(f.Program(), "nix-daemon"); ok {
		return front + "nix-store"
	}
	return f.Program()
}

// rootCommand runs a command there. Its first word may be several, as in "sudo
// nix-store", so the shell splits it.
func (f *farEnd) rootCommand(ctx context.Context, words []string) error {
	if f.host.store != "" {
		words = append(words, "--store", f.host.store)
	}
	_, err := f.output(ctx, remote.Command("program=$1; shift; exec $program \"$@\" >/dev/null", words...))
	return err
}

func (l *localEnd) checkRoots(ctx context.Context, q rootRequest) error {
	for _, file := range q.files() {
		if err := checkCreatable(file); err != nil {
			return fmt.Errorf("make roots: %w", err)
		}
	}
	return nil
}

// checkCreatable returns an error if this user cannot make a file with that name.
func checkCreatable(file string) error {
	dir := filepath.Dir(file)
	for {
		_, err := os.Stat(dir)
		if err == nil {
			break
		}
		if parent := filepath.Dir(dir); parent != dir && errors.Is(err, fs.ErrNotExist) {
			dir = parent
			continue
		}
		return err
	}
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return &fs.PathError{Op: "write", Path: dir, Err: err}
	}
	return nil
}

func (l *localEnd) makeRoots(ctx context.Context, q rootRequest, paths []nix.StorePath, result *copyResult) error {
	for i, link := range q.links {
		if err := l.addRoot(ctx, link, paths[i]); err != nil {
			return fmt.Errorf("add root %s for %s: %w", link, paths[i], err)
		}
		result.Roots = append(result.Roots, link)
	}
	if q.profile == "" {
		return nil
	}
	generation, err := l.setProfile(ctx, q.profile, paths[0])
	if err != nil {
		return fmt.Errorf("set profile %s to %s: %w", q.profile, paths[0], err)
	}
	result.Roots = append(result.Roots, q.profile)
	result.Generation = generation
	return nil
}

func (l *localEnd) addRoot(ctx context.Context, link string, p nix.StorePath) error {
	if l.nix == nil {
		return l.store.AddRoot(ctx, link, p)
	}
	return l.runNix(ctx, "nix-store", "-r", p.String(), "--add-root", link, "--indirect")
}

func (l *localEnd) setProfile(ctx context.Context, profile string, p nix.StorePath) (generation int, err error) {
	if l.nix == nil {
		return l.store.SetProfile(ctx, profile, p)
	}
	return 0, l.runNix(ctx, "nix-env", "-p", profile, "--set", p.String())
}

// runNix runs a program of the Nix that is here. It first waits for the greeting of the
// session that was begun, which would end with an error if it were closed before.
func (l *localEnd) runNix(ctx context.Context, words ...string) error {
	if err := l.nix.Greet(ctx); err != nil {
		return err
	}
	if l.nixURI != "" {
		words = append(words, "--store", l.nixURI)
	}
	var err error
	if words[0], err = farend.LookPath(words[0]); err != nil {
		return err
	}
	session, err := transport.LocalCommand(ctx, words, nil, nil)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, session); err != nil {
		return errors.Join(err, session.Close())
	}
	return session.Close()
}

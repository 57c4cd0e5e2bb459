// Package farend finds the Nix of this machine and starts it. The program and the agent
// share it, so that neither takes itself or the other for a Nix: both may be installed
// under the names of Nix's programs.
package farend

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/copy-closure/copy-closure/internal/localstore"
)

// ErrNoNix means that PATH has no program of Nix with the wanted name.
var ErrNoNix = errors.New("not found in PATH")

// Choose decides what the value of --store means on this machine.
func Choose(uri string) (localstore.Choice, error) {
	facts, err := localstore.Gather(os.LookupEnv)
	if err != nil {
		return localstore.Choice{}, err
	}
	_, err = LookPath("nix-store")
	facts.HaveNix = err == nil
	return facts.Choose(uri)
}

// LookPath returns the first program with this name in PATH that is Nix's: it passes
// over copy-closure, its agent, and scripts that start one of them. Its error wraps
// ErrNoNix and names what was passed over.
func LookPath(name string) (string, error) {
	var ours []string
	for _, file := range inPath(name) {
		if !isOurs(file, nil) {
			return file, nil
		}
		ours = append(ours, file)
	}
	if ours == nil {
		return "", fmt.Errorf("%s: %w; install Nix", name, ErrNoNix)
	}
	return "", fmt.Errorf("%s of Nix: %w: %s is or starts copy-closure; put Nix's own %s into PATH, or name a store with --store /DIR",
		name, ErrNoNix, strings.Join(ours, ", "), name)
}

// ServeThroughNix hands the client to the Nix of this machine, which keeps its rules about
// who may add what: it replaces this process by nix-store --serve [--write] or nix-daemon
// --stdio. It returns only if that fails. An empty uri is the default store of that Nix.
func ServeThroughNix(daemon, write bool, uri string) error {
	argv := []string{"nix-store", "--serve"}
	switch {
	case daemon:
		argv = []string{"nix-daemon", "--stdio"}
	case write:
		argv = append(argv, "--write")
	}
	file, err := LookPath(argv[0])
	if err == nil {
		err = markExec(file)
	}
	if err == nil {
		if uri != "" {
			argv = append(argv, "--store", uri)
		}
		err = syscall.Exec(file, argv, os.Environ())
	}
	return fmt.Errorf("serve through Nix: %w", err)
}

// inPath lists the executable files with this name. Directories that are relative to the
// working directory are ignored.
func inPath(name string) []string {
	var files []string
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		file := filepath.Join(dir, name)
		if filepath.IsAbs(dir) && isExecutable(file) {
			files = append(files, file)
		}
	}
	return files
}

func isExecutable(file string) bool {
	info, err := os.Stat(file)
	return err == nil && info.Mode().IsRegular() && unix.Access(file, unix.X_OK) == nil
}

// isOurs reports whether a file is a program built from this module, or a script that
// starts one. What cannot be read is not. The scripts that led here end a circle.
func isOurs(file string, scripts []string) bool {
	if !isExecutable(file) || slices.Contains(scripts, file) {
		return false
	}
	if isSelf(file) {
		return true
	}
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	r := bufio.NewReader(f)
	if magic, _ := r.Peek(2); string(magic) != "#!" {
		return contains(r, moduleLine)
	}
	script, _ := io.ReadAll(io.LimitReader(r, maxScript))
	return slices.ContainsFunc(words(string(script)), func(word string) bool {
		return isOurWord(word, append(scripts, file))
	})
}

const (
	// moduleLine is in the build information of each program of this module. Package
	// debug/buildinfo would find it, too, and make the agent larger by 4 %.
	moduleLine = "\nmod\tgithub.com/copy-closure/copy-closure\t"
	maxScript  = 64 << 10 // more than scripts have that start another program
)

// contains reports whether text is in what r reads.
func contains(r io.Reader, text string) bool {
	buf := make([]byte, 64<<10)
	kept := 0
	for {
		n, err := r.Read(buf[kept:])
		kept += n
		if bytes.Contains(buf[:kept], []byte(text)) {
			return true
		}
		if err != nil {
			return false
		}
		kept = copy(buf, buf[max(0, kept-len(text)):kept])
	}
}

func isSelf(file string) bool {
	info, err := os.Stat(file)
	if err != nil {
		return false
	}
	self, err := os.Stat("/proc/self/exe") // also where the file was replaced
	if err != nil {
		if executable, err := os.Executable(); err == nil {
			self, _ = os.Stat(executable)
		}
	}
	return os.SameFile(info, self)
}

// words splits a script, without its comments, into what may be names of programs.
func words(script string) []string {
	var all []string
	for i, line := range strings.Split(script, "\n") {
		if i > 0 && strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		all = append(all, strings.FieldsFunc(line, func(r rune) bool {
			return unicode.IsSpace(r) || strings.ContainsRune("\"'`;&|()<>{}=$", r)
		})...)
	}
	return all
}

// isOurWord reports whether a word of a script names one of our programs.
func isOurWord(word string, scripts []string) bool {
	switch base := filepath.Base(word); {
	case base == "copy-closure", base == "copy-closure-agent":
		return true
	case filepath.IsAbs(word):
		return isOurs(word, scripts)
	case word == "nix-store", word == "nix-daemon": // one of which it may be
		found := inPath(word)
		return len(found) > 0 && isOurs(found[0], scripts)
	}
	return false
}

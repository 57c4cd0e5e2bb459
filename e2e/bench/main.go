// Command bench measures copy-closure against the tools that it replaces and
// prints a Markdown table of medians, spreads and ratios.
//
//	go run ./e2e/bench [--quick] [--case NAME]… [--runs N] [--dir DIR] [--fs ext4|dir]
//
// It starts real OpenSSH servers and uses real stores of the installed Nix.
// Each run copies to fresh names; as root, also to a fresh ext4 file system,
// made in an image in DIR and mounted where only the benchmark sees it.
// Sources lie in DIR itself, which is /dev/shm unless said otherwise.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/copy-closure/copy-closure/e2e/harness"
)

func main() {
	if len(os.Args) > 3 && os.Args[1] == measureVerb {
		os.Exit(measure(os.Args[2], os.Args[3:]))
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	quick  bool
	runs   int
	cases  []string
	dir    string
	fs     string
	binary string
}

func parse(args []string) (*options, error) {
	o := &options{fs: "dir"}
	if os.Getuid() == 0 {
		o.fs = "ext4"
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.BoolVar(&o.quick, "quick", false, "two runs of each case, and shorter ones of what is extrapolated")
	flags.IntVar(&o.runs, "runs", 0, "runs of each tool (default 5, with --quick 2)")
	flags.Func("case", "run only this case (may be repeated): "+strings.Join(caseNames(), ", "), func(name string) error {
		o.cases = append(o.cases, name)
		return nil
	})
	flags.StringVar(&o.dir, "dir", "/dev/shm", "where everything is put")
	flags.StringVar(&o.fs, "fs", o.fs, "destination: ext4 (a fresh image, needs root) or dir (a fresh directory)")
	flags.StringVar(&o.binary, "binary", "", "the copy-closure to measure (default: built from this module)")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if o.runs == 0 {
		o.runs = 5
		if o.quick {
			o.runs = 2
		}
	}
	for _, name := range o.cases {
		if findCase(name) == nil {
			return nil, fmt.Errorf("no case %q; there are %s", name, strings.Join(caseNames(), ", "))
		}
	}
	return o, nil
}

func run(args []string) error {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := enterNamespace(o); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	l, err := newLab(ctx, o)
	if err != nil {
		return err
	}
	defer l.close()
	return l.printTable(ctx)
}

// printTable goes on after a case that failed, unless it was told to stop.
func (l *lab) printTable(ctx context.Context) error {
	fmt.Print(l.heading())
	var failed error
	for _, c := range allCases {
		if len(l.cases) > 0 && !slices.Contains(l.cases, c.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "case %s\n", c.name)
		rows, err := c.run(ctx, l)
		for _, r := range rows {
			fmt.Println(r.markdown())
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("case %s: %w", c.name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	fmt.Print(footnotes)
	return failed
}

const namespaceVariable = "COPY_CLOSURE_BENCH_NAMESPACE"

// enterNamespace replaces the process by one in a mount namespace of its own,
// so that the images it mounts are gone when it is, however it ends.
func enterNamespace(o *options) error {
	if o.fs != "ext4" || os.Getenv(namespaceVariable) != "" {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		return err
	}
	line := append([]string{"unshare", "--mount", "--propagation", "private", self}, os.Args[1:]...)
	return syscall.Exec(unshare, line, append(os.Environ(), namespaceVariable+"=1"))
}

// buildProduct returns the program to measure.
func buildProduct(o *options, dir string) (string, error) {
	if o.binary != "" {
		return filepath.Abs(o.binary)
	}
	file := filepath.Join(dir, "copy-closure")
	cmd := exec.Command("go", "build", "-o", file, "github.com/copy-closure/copy-closure")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return file, nil
}

// removeAll is deferred, when nothing can be done about an error any more.
func removeAll(dir string) {
	if err := harness.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/show"
	"github.com/copy-closure/copy-closure/internal/ui"
)

// storeCommand works on the local store without Nix.
func (p *program) storeCommand() *cli.Command {
	sub := func(name, args, usage string, why purpose, flags []cli.Flag, run func(*storeRun) error) *cli.Command {
		return &cli.Command{
			Name: name, ArgsUsage: args, Usage: usage,
			Flags:  joinFlags(flags, []cli.Flag{storeFlag}, logFlags),
			Action: func(c *cli.Context) error { return p.runStore(c, name, args, why, run) },
		}
	}
	jsonFlag := &cli.BoolFlag{Name: "json", Usage: "print JSON"}
	return &cli.Command{
		Name:  "store",
		Usage: "work on the local store without Nix",
		Subcommands: []*cli.Command{
			sub("add", "PATH…", "copy files or directories into the store", toWrite,
				[]cli.Flag{&cli.StringFlag{Name: "name", Usage: "`NAME` of the store path (default: the last part of PATH)"}}, storeAdd),
			sub("info", "PATH…", "print what the store knows of paths", toRead, []cli.Flag{jsonFlag}, storeInfo),
			sub("ls", "[PATH]", "list the valid paths, or the files of one", toRead, nil, storeList),
			sub("closure", "PATH…", "list paths and all they refer to, references first", toRead, []cli.Flag{jsonFlag}, storeClosure),
			sub("verify", "[PATH…]", "hash the contents of all paths, or of some, again", toRead, nil, storeVerify),
			sub("delete", "PATH…", "delete paths that nothing refers to and no root keeps", toWrite, nil, storeDelete),
			sub("add-root", "LINK PATH", "make LINK a garbage collector root for PATH", toWrite, nil, storeAddRoot),
			sub("set-profile", "PROFILE PATH", "make PATH a new generation of PROFILE", toWrite, nil, storeSetProfile),
		},
	}
}

// A storeRun is one of the store commands under way.
type storeRun struct {
	*program
	ctx    context.Context
	c      *cli.Context
	args   []string
	local  *localEnd
	stdout *ui.Output   // buffered: results may be thousands of lines
	flush  func() error // writes out what stdout has
}

func (p *program) runStore(c *cli.Context, name, args string, why purpose, run func(*storeRun) error) (err error) {
	if err := p.setOutput(c); err != nil {
		return err
	}
	local, err := p.openDirectly(c.Context, c.String("store"), why)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, local.close()) }()
	r := &storeRun{program: p, ctx: c.Context, c: c, args: c.Args().Slice(), local: local}
	r.stdout, r.flush = p.stdout.Buffered()
	err = errors.Join(run(r), r.flush())
	if errors.Is(err, errArguments) {
		return usagef("say %s store %s %s", p.name, name, args)
	}
	return err
}

// errArguments says that the number of arguments is wrong.
var errArguments = errors.New("wrong number of arguments")

// some checks that there are arguments.
func (r *storeRun) some() error {
	if len(r.args) == 0 {
		return errArguments
	}
	return nil
}

// paths resolves arguments.
func (r *storeRun) paths(args []string) ([]nix.StorePath, error) {
	return r.local.resolve(r.ctx, args)
}

func storeAdd(r *storeRun) error {
	name := r.c.String("name")
	if len(r.args) == 0 || name != "" && len(r.args) > 1 {
		return errArguments
	}
	for _, path := range r.args {
		as := name
		if as == "" {
			absolute, err := filepath.Abs(path)
			if err != nil {
				return err
			}
			as = filepath.Base(absolute)
		}
		added, err := r.local.addTree(r.ctx, as, path)
		if err != nil {
			return err
		}
		fmt.Fprintln(r.stdout, added)
	}
	return nil
}

// A pathDetail is what store info prints; the names are those of nix path-info.
type pathDetail struct {
	Path       nix.StorePath   `json:"path"`
	NARHash    string          `json:"narHash"`
	NARSize    int64           `json:"narSize"`
	References []nix.StorePath `json:"references"`
	Deriver    string          `json:"deriver,omitempty"`
	Signatures []string        `json:"signatures,omitempty"`
	CA         string          `json:"ca,omitempty"`
	Registered int64           `json:"registrationTime"` // seconds since 1970; 0: nix-store does not tell
}

func detail(info *nix.PathInfo) pathDetail {
	return pathDetail{
		Path: info.Path, NARHash: info.NARHash.String(), NARSize: info.NARSize,
		References: orEmpty(info.References), Deriver: info.Deriver.String(),
		Signatures: info.Signatures, CA: info.CA, Registered: unixTime(info.Registered),
	}
}

func unixTime(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func storeInfo(r *storeRun) error {
	if err := r.some(); err != nil {
		return err
	}
	paths, err := r.paths(r.args)
	if err != nil {
		return err
	}
	infos, err := r.local.infos(r.ctx, paths)
	if err != nil {
		return &notInSourceError{err}
	}
	details := make([]pathDetail, len(infos))
	for i, info := range infos {
		details[i] = detail(info)
	}
	if r.c.Bool("json") {
		return printJSON(r.stdout, details)
	}
	for _, d := range details {
		r.printDetail(d)
	}
	return nil
}

func (r *storeRun) printDetail(d pathDetail) {
	fmt.Fprintf(r.stdout, "%s\n  NAR hash: %s\n  NAR size: %d (%s)\n", d.Path, d.NARHash, d.NARSize, ui.Bytes(d.NARSize))
	for _, ref := range d.References {
		fmt.Fprintf(r.stdout, "  refers to: %s\n", ref)
	}
	for _, field := range [][2]string{{"deriver", d.Deriver}, {"content address", d.CA}} {
		if field[1] != "" {
			r.stdout.Printf("  %s: %s\n", field[0], field[1])
		}
	}
	for _, signature := range d.Signatures {
		r.stdout.Printf("  signature: %s\n", signature)
	}
	if d.Registered != 0 {
		fmt.Fprintf(r.stdout, "  registered: %s\n", time.Unix(d.Registered, 0).UTC().Format(time.RFC3339))
	}
}

func storeList(r *storeRun) error {
	switch len(r.args) {
	case 0:
		paths, err := r.local.allPaths(r.ctx)
		for _, path := range paths {
			fmt.Fprintln(r.stdout, path)
		}
		return err
	case 1:
		return r.listTree(r.args[0])
	}
	return errArguments
}

// listTree prints the files at or below an argument, which may lie inside a path.
func (r *storeRun) listTree(arg string) error {
	path, inside, err := r.local.split(r.ctx, arg)
	if err != nil {
		return &notInSourceError{err}
	}
	if _, err := r.local.infos(r.ctx, []nix.StorePath{path}); err != nil {
		return &notInSourceError{err}
	}
	return r.local.listTree(r.ctx, path, inside, func(f treeFile) error {
		if f.target != "" {
			return r.stdout.Printf("%s %12d  %s -> %s\n", f.mode, f.size, f.name, f.target)
		}
		return r.stdout.Printf("%s %12d  %s\n", f.mode, f.size, f.name)
	})
}

func storeClosure(r *storeRun) error {
	if err := r.some(); err != nil {
		return err
	}
	roots, err := r.paths(r.args)
	if err != nil {
		return err
	}
	infos, err := r.local.closure(r.ctx, roots)
	if err != nil {
		return &notInSourceError{err}
	}
	if infos, err = closure.Sort(infos); err != nil {
		return err
	}
	if r.c.Bool("json") {
		details := make([]pathDetail, len(infos))
		for i, info := range infos {
			details[i] = detail(info)
		}
		return printJSON(r.stdout, details)
	}
	for _, info := range infos {
		fmt.Fprintln(r.stdout, info.Path)
	}
	return nil
}

func storeVerify(r *storeRun) error {
	paths, err := r.paths(r.args)
	if err != nil {
		return err
	}
	if len(r.args) == 0 {
		paths = nil // all
	}
	checked, damaged := 0, 0
	err = r.local.verify(r.ctx, paths, func(path nix.StorePath, err error) {
		checked++
		if err != nil {
			damaged++
			fmt.Fprintln(r.stdout, show.Line(err.Error()))
			r.flush() // the rest may take long
		}
	})
	if err != nil {
		return err
	}
	if damaged > 0 {
		return fmt.Errorf("%d of %s: %w", damaged, ui.Paths(checked), nix.ErrDamaged)
	}
	fmt.Fprintf(r.screen, "verified %s\n", ui.Paths(checked))
	return nil
}

func storeDelete(r *storeRun) error {
	if err := r.some(); err != nil {
		return err
	}
	paths, err := r.paths(r.args)
	if err != nil {
		return err
	}
	freed, known, err := r.local.delete(r.ctx, paths)
	if err != nil {
		return err
	}
	much := ""
	if known {
		much = fmt.Sprintf(", %s freed", ui.Bytes(freed))
	}
	fmt.Fprintf(r.screen, "deleted %s%s\n", ui.Paths(len(paths)), much)
	return nil
}

func storeAddRoot(r *storeRun) error {
	if len(r.args) != 2 {
		return errArguments
	}
	paths, err := r.paths(r.args[1:])
	if err != nil {
		return err
	}
	return r.local.addRoot(r.ctx, r.args[0], paths[0])
}

func storeSetProfile(r *storeRun) error {
	if len(r.args) != 2 {
		return errArguments
	}
	paths, err := r.paths(r.args[1:])
	if err != nil {
		return err
	}
	generation, err := r.local.setProfile(r.ctx, r.args[0], paths[0])
	if err != nil || generation == 0 { // Nix does not tell
		return err
	}
	fmt.Fprintf(r.stdout, "%d\n", generation)
	return nil
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/ui"
)

// demoCommand does the main job on this machine alone.
func (p *program) demoCommand() *cli.Command {
	return &cli.Command{
		Name:      "demo",
		Usage:     "pack, push, pull and verify on this machine alone",
		ArgsUsage: "[DIR…]",
		Flags:     append([]cli.Flag{&cli.BoolFlag{Name: "keep", Usage: "keep the scratch directory"}}, logFlags...),
		Action: func(c *cli.Context) error {
			if err := p.setOutput(c); err != nil {
				return err
			}
			return p.demo(c.Context, c.Args().Slice(), c.Bool("keep"))
		},
	}
}

// A demo is a scratch directory with three stores and an SSH server.
type demo struct {
	*program
	dir    string
	server *demoServer
}

// demo packs trees into one store, pushes them into a second, and pulls them from
// there into a third, with the commands that a user would type.
func (p *program) demo(ctx context.Context, trees []string, keep bool) (err error) {
	dir, err := os.MkdirTemp("", "copy-closure-demo-")
	if err != nil {
		return err
	}
	if keep {
		fmt.Fprintln(p.screen, "scratch directory:", dir)
	} else {
		defer func() { err = errors.Join(err, nar.RemoveAll(dir)) }()
	}
	d := &demo{program: p, dir: dir}
	top, err := d.pack(ctx, trees)
	if err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	if d.server, err = startDemoServer(ctx, dir); err != nil {
		return fmt.Errorf("start an SSH server: %w", err)
	}
	defer d.server.close()
	fmt.Fprintf(p.screen, "an SSH server of this process listens on %s\n", d.server.address())
	for _, step := range []struct{ switches, store string }{
		{"--to", "source"}, // everything
		{"--to", "source"}, // nothing
		{"--from", "third"},
	} {
		if err := d.copy(ctx, step.switches, step.store, top); err != nil {
			return err
		}
	}
	for _, store := range []string{"source", "far", "third"} {
		if err := d.verify(ctx, store, top); err != nil {
			return err
		}
	}
	return nil
}

// store is where one of the demo's stores lies.
func (d *demo) store(name string) string { return filepath.Join(d.dir, name) }

// pack makes a store path of each tree, and one more that links to all of them, as
// the environment of a profile does.
func (d *demo) pack(ctx context.Context, trees []string) (top nix.StorePath, err error) {
	if len(trees) == 0 {
		if trees, err = demoTrees(); err != nil {
			return top, err
		}
	}
	store, err := localstore.OpenOrCreate(ctx, localstore.Under(d.store("source")))
	if err != nil {
		return top, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	links := filepath.Join(d.dir, "environment")
	if err := os.Mkdir(links, 0o755); err != nil {
		return top, err
	}
	start := time.Now()
	var size int64
	for i, tree := range trees {
		info, err := store.AddTree(ctx, demoName(tree), tree)
		if err != nil {
			return top, err
		}
		size += info.NARSize
		if err := os.Symlink(info.Path.String(), filepath.Join(links, fmt.Sprintf("%d-%s", i, info.Path.Name()))); err != nil {
			return top, err
		}
	}
	info, err := store.AddTree(ctx, "demo-environment", links)
	if err != nil {
		return top, err
	}
	fmt.Fprintf(d.screen, "packed %s of this machine, %s, and one that links to them: %s\n",
		ui.Directories(len(trees)), ui.Bytes(size), ui.Seconds(time.Since(start)))
	return info.Path, nil
}

// demoName is the last part of a tree's name, as far as a store path allows it.
func demoName(tree string) string {
	name := filepath.Base(filepath.Clean(tree))
	if nix.CheckName(name) != nil {
		return "tree"
	}
	return name
}

// demoTrees finds some megabytes that nearly every machine has.
func demoTrees() ([]string, error) {
	const most = 12
	for _, pattern := range []string{
		"/usr/local/go/src/*", "/usr/lib/go*/src/*", "/usr/share/perl*/*", "/usr/lib/python3*/*", "/usr/share/*", "/etc/*",
	} {
		matches, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		var trees []string
		for _, tree := range matches {
			if st, err := os.Stat(tree); err == nil && st.IsDir() && readable(tree) && len(trees) < most {
				trees = append(trees, tree)
			}
		}
		if len(trees) > 1 {
			return trees, nil
		}
	}
	return nil, usagef("say which directories to pack: copy-closure demo DIR…")
}

// readable reports whether all files of a tree can be packed.
func readable(tree string) bool {
	err := filepath.WalkDir(tree, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		return f.Close()
	})
	return err == nil
}

// copy runs the command line of a copy between one of the stores and the far one.
func (d *demo) copy(ctx context.Context, direction, store string, top nix.StorePath) error {
	host := fmt.Sprintf("ssh://%s?remote-store=%s", d.server.address(), d.store("far"))
	args := []string{direction, "--store", d.store(store), "--no-check-sigs", host, top.String()}
	if direction == "--to" {
		args = append(args[:3], args[4:]...)
	}
	fmt.Fprintf(d.screen, "\n")
	fmt.Fprintf(d.screen, "$ copy-closure %s %s …\n", direction, host)
	p := *d.program
	p.sshOptions = d.server.clientOptions
	return p.runApp(ctx, p.app(), args)
}

// verify hashes a store's contents and compares the closure with what was packed.
func (d *demo) verify(ctx context.Context, name string, top nix.StorePath) (err error) {
	c := localstore.Under(d.store(name))
	c.ReadOnly = true
	store, err := localstore.Open(ctx, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	infos, err := store.Closure(ctx, []nix.StorePath{top})
	if err != nil {
		return err
	}
	var damaged []error
	err = store.Verify(ctx, nil, func(_ nix.StorePath, err error) { damaged = append(damaged, err) })
	if err := errors.Join(append(damaged, err)...); err != nil {
		return fmt.Errorf("verify the store %s: %w", name, err)
	}
	fmt.Fprintf(d.screen, "verified the store %s: %s, every hash is right\n", name, ui.Paths(len(infos)))
	return nil
}

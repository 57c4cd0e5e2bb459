package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/copy-closure/copy-closure/e2e/harness"
)

// bootstrap compares a first push to a machine without Nix, which uploads our program,
// with copying the program alone.
func bootstrap(ctx context.Context, l *lab) ([]row, error) {
	if os.Getuid() != 0 {
		return nil, fmt.Errorf("a machine without Nix is made of namespaces, which needs root")
	}
	b, err := newBootstrapping(ctx, l)
	if err != nil {
		return nil, err
	}
	const limit = 1.2
	title := "3 tiny paths to a machine without Nix, 100 ms"
	rows := []row{
		{name: title + ": push with upload", tool: us.name, threshold: fmt.Sprintf("≤ %.2f × scp", limit)},
		{name: title + ": the next push", tool: us.name},
		{name: "our program for upload, 100 ms", tool: "scp", ratio: "="},
	}
	for range l.runs {
		if err := b.once(ctx, rows); err != nil {
			return nil, err
		}
	}
	ratio := float64(harness.Median(rows[0].times)) / float64(harness.Median(rows[2].times))
	rows[0].ratio, rows[0].verdict = fmt.Sprintf("%.2f ×", ratio), verdict(ratio, limit)
	return rows, nil
}

// A bootstrapping has our program and, beside it, the one that it uploads.
type bootstrapping struct {
	*lab
	program, agent string
	source         *source
}

func newBootstrapping(ctx context.Context, l *lab) (*bootstrapping, error) {
	dir := l.file("installed")
	b := &bootstrapping{
		lab:     l,
		program: filepath.Join(dir, "copy-closure"),
		agent:   filepath.Join(dir, "copy-closure-agent-"+runtime.GOOS+"-"+runtime.GOARCH),
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if err := execute(ctx, "cp", l.product, b.program); err != nil {
		return nil, err
	}
	err := execute(ctx, "env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", b.agent,
		"github.com/copy-closure/copy-closure/cmd/copy-closure-agent")
	if err != nil {
		return nil, err
	}
	few := tiny(3)
	b.source, err = l.source(ctx, few.name, few.fill)
	return b, err
}

// once adds a run to each row.
func (b *bootstrapping) once(ctx context.Context, rows []row) error {
	dir, discard, err := b.fresh(ctx)
	if err != nil {
		return err
	}
	defer discard()
	store, err := harness.NewStore(ctx, filepath.Join(dir, "store"))
	if err != nil {
		return err
	}
	f, err := b.startBare(store)
	if err != nil {
		return err
	}
	defer f.close()
	push := append([]string{b.program, "-q", "--bootstrap", "auto", "--store", b.source.store.Root, "--to", harness.FarHost}, b.source.Roots...)
	scp := []string{"scp", "-q", "-F", f.config, b.agent, harness.FarHost + ":" + filepath.Join(f.dir, "copied")}
	for i, line := range [][]string{push, push, scp} {
		took, err := timed(ctx, line, []string{"NIX_SSHOPTS=-F " + f.config})
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "  %s: %s\n", rows[i].name, seconds(took))
		rows[i].times = append(rows[i].times, took)
	}
	return nil
}

// startBare starts a server on a machine without Nix and without us, far away.
func (b *bootstrapping) startBare(store *harness.Store) (*far, error) {
	f, err := b.newFar()
	if err != nil {
		return nil, err
	}
	space, err := harness.NewNamespace(store, false)
	if err != nil {
		return nil, err
	}
	path, err := harness.BarePath(filepath.Join(f.dir, "bare"))
	if err != nil {
		return nil, err
	}
	config := harness.SshdConfig{Dir: f.dir, Prefix: space.Command(), Env: append(space.Env(), "HOME="+f.dir, "PATH="+path)}
	return f, f.start(config, &harness.Link{Delay: farAway / 2})
}

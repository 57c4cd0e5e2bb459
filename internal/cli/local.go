package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/remote"
)

type purpose int

const (
	forReading purpose = iota
	forWriting
)

// A localEnd is the store at this end.
type localEnd struct {
	source closure.Source
	target closure.Target
	nix    *remote.Store
}

func (r *copyRun) openLocal(ctx context.Context, why purpose) (*localEnd, error) {
	uri := r.store
	if uri == "auto" {
		uri = ""
	}
	access := remote.Write
	if r.terms.DryRun {
		access = remote.Look
	}
	s, err := openNix(ctx, access, uri, r.log)
	if err != nil {
		return nil, err
	}
	return &localEnd{source: serveSource{s, r.outputs}, target: serveTarget{s}, nix: s}, nil
}

func (l *localEnd) close() error { return l.nix.Close() }

func (l *localEnd) resolve(ctx context.Context, args []string) ([]nix.StorePath, error) {
	var roots []nix.StorePath
	for _, arg := range args {
		p, err := l.resolveLink(ctx, arg)
		if err != nil {
			return nil, err
		}
		roots = append(roots, p)
	}
	return roots, nil
}

func (l *localEnd) resolveLink(ctx context.Context, arg string) (nix.StorePath, error) {
	if p, _, err := storeDir().Split(arg); err == nil {
		return p, nil
	}
	real, err := filepath.EvalSymlinks(arg)
	if err != nil {
		return nix.StorePath{}, err
	}
	p, _, err := storeDir().Split(real)
	return p, err
}

func (l *localEnd) checkRoots(ctx context.Context, q rootRequest) error {
	if q.empty() {
		return nil
	}
	return errors.New("roots")
}

func (l *localEnd) makeRoots(ctx context.Context, q rootRequest, paths []nix.StorePath, result *copyResult) error {
	return nil
}

func storeDir() nix.StoreDir {
	if dir := os.Getenv("NIX_STORE_DIR"); dir != "" {
		return nix.StoreDir(dir)
	}
	return nix.DefaultStoreDir
}

var _ = fmt.Sprint

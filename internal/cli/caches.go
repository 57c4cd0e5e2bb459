package cli

import (
	"context"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixconf"
	"github.com/copy-closure/copy-closure/substitute"
)

// cacheFlags are those of commands that take paths from caches.
func cacheFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "substituter", Usage: "take from the cache at `URL`, too (may be repeated)"},
		&cli.StringSliceFlag{Name: "trusted-public-key", Usage: "believe what `KEY` has signed (may be repeated)"},
		&cli.BoolFlag{Name: "refresh", Usage: "ask caches again what earlier runs have asked"},
	}
}

// A cacheRequest says which caches to use, and how far to believe them.
type cacheRequest struct {
	only      []string // URLs, in place of those of the configuration if there are any
	further   []string
	keys      []string
	checkSigs bool
	refresh   bool
}

func readCacheRequest(c *cli.Context) cacheRequest {
	return cacheRequest{
		further:   c.StringSlice("substituter"),
		keys:      c.StringSlice("trusted-public-key"),
		checkSigs: !c.Bool("no-check-sigs"),
		refresh:   c.Bool("refresh"),
	}
}

// decodingMemory bounds what the garbage collector lets pile up where NARs are
// decompressed: several windows are alive at once.
const decodingMemory = 96 << 20

// openSubstituters prepares the caches that a request means; nil if there are none.
// Nothing is asked of them yet.
func (p *program) openSubstituters(ctx context.Context, q cacheRequest) (*substitute.Substituters, error) {
	var configured []string
	if len(q.only) == 0 {
		conf, err := nixconf.Load(os.LookupEnv)
		if err != nil {
			return nil, err
		}
		configured = conf.Substituters()
	}
	var accept func(*nix.PathInfo) error // nil: signatures are not asked for
	if q.checkSigs {
		var err error
		if accept, err = p.acceptanceBy(q.keys); err != nil {
			return nil, err
		}
	}
	s := &substitute.Substituters{Logger: p.log}
	seen := make(map[string]bool)
	for i, address := range slices.Concat(configured, q.only, q.further) {
		if seen[address] {
			continue
		}
		seen[address] = true
		cache, err := p.newCache(ctx, address, accept)
		switch {
		case err == nil:
			s.Caches = append(s.Caches, cache)
		case i >= len(configured):
			return nil, err
		default:
			p.skipSubstituter(address, err)
		}
	}
	if len(s.Caches) == 0 {
		return nil, nil
	}
	if dir, err := os.UserCacheDir(); err == nil {
		s.Memory = &substitute.Memory{Dir: filepath.Join(dir, "copy-closure", "narinfo"), Refresh: q.refresh}
	}
	debug.SetMemoryLimit(decodingMemory)
	return s, nil
}

// skipSubstituter warns, once, of a substituter of the configuration that cannot be
// used. As in Nix it does not stop the others.
func (p *program) skipSubstituter(address string, reason error) {
	if p.skipped[address] {
		return
	}
	if p.skipped == nil {
		p.skipped = make(map[string]bool)
	}
	p.skipped[address] = true
	p.log.Warn("substituter skipped", "reason", reason)
}

// newCache reads the parameters of Nix that say how a cache is used: priority=N, and
// trusted=true, which makes its signatures superfluous.
func (p *program) newCache(ctx context.Context, address string, accept func(*nix.PathInfo) error) (*substitute.Cache, error) {
	files, err := p.openCache(ctx, address)
	if err != nil {
		return nil, err
	}
	parameters, err := cacheParameters(address)
	if err != nil {
		return nil, err
	}
	cache := &substitute.Cache{Files: files, StoreDir: storeDir(), Accept: accept}
	if text := parameters["priority"]; text != "" {
		if cache.Priority, err = strconv.Atoi(text); err != nil {
			return nil, usagef("cache %s: priority=%s is no number", files, text)
		}
	}
	if text := parameters["trusted"]; text != "" {
		trusted, err := nixconf.ParseBool(text)
		if err != nil {
			return nil, usagef("cache %s: trusted: %v", files, err)
		}
		if trusted {
			cache.Accept = nil
		}
	}
	return cache, nil
}

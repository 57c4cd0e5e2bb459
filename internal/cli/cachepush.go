package cli

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/progress"
	"github.com/copy-closure/copy-closure/internal/ui"
	"github.com/copy-closure/copy-closure/substitute"
)

// packFlags say how paths are put into a cache.
var packFlags = []cli.Flag{
	&cli.StringSliceFlag{Name: "sign-with", Usage: "sign with the secret key in `FILE` (repeatable)"},
	&cli.StringFlag{Name: "compression", Value: "zstd", Usage: "`HOW` to compress: zstd, xz or none"},
	&cli.IntFlag{Name: "compression-level", Usage: "`N`, up to 22 for zstd, 9 for xz (default: as the compression has it)"},
}

// outputFlags are those of commands that show progress.
var outputFlags = append([]cli.Flag{
	&cli.StringFlag{Name: "progress", Value: "auto", Usage: "`HOW` to show progress: auto, bar, plain or none"},
}, logFlags...)

// cachePushCommand makes a cache, or adds to it.
func (p *program) cachePushCommand() *cli.Command {
	return &cli.Command{
		Name: "push", ArgsUsage: "PATH…", Usage: "put closures into a cache",
		Flags: joinFlags([]cli.Flag{
			&cli.StringFlag{Name: "to", Usage: "the cache: file:///DIR, sftp://HOST/DIR, s3://BUCKET or an http `URL` that takes PUT"},
			stdinFlag,
			storeFlag,
		}, packFlags, outputFlags),
		Action: p.cachePush,
	}
}

func joinFlags(lists ...[]cli.Flag) []cli.Flag {
	var all []cli.Flag
	for _, list := range lists {
		all = append(all, list...)
	}
	return all
}

func (p *program) cachePush(c *cli.Context) error {
	if err := p.setOutput(c); err != nil {
		return err
	}
	args, err := p.pathArguments(c, c.Args().Slice())
	if err != nil {
		return err
	}
	if !c.IsSet("to") || len(args) == 0 {
		return usagef("say %s cache push --to URL PATH…", p.name)
	}
	if _, err := p.choose(c.String("store")); err != nil {
		return err
	}
	files, err := p.openWritableCache(c.Context, c.String("to"))
	if err != nil {
		return err
	}
	started := time.Now()
	result, _, err := p.pushClosure(c, files, args)
	if err != nil {
		return err
	}
	if !c.Bool("quiet") {
		sent := "nothing to send"
		if result.Pushed > 0 {
			sent = fmt.Sprintf("%s sent (%s uncompressed)", ui.Bytes(result.Sent), ui.Bytes(result.NARBytes))
		}
		fmt.Fprintf(p.screen, "pushed %s of %s to %s: %s, %s present%s, %s\n",
			ui.Count(result.Pushed), ui.Paths(result.Pushed+result.Present), files, sent,
			ui.Count(result.Present), newlySigned(result), ui.Seconds(time.Since(started)))
	}
	return nil
}

// newlySigned tells what has happened to paths that were there already.
func newlySigned(result substitute.PushResult) string {
	if result.Signed == 0 {
		return ""
	}
	return fmt.Sprintf(" (%s newly signed)", ui.Count(result.Signed))
}

// pushClosure puts the closure of arguments into a cache, as the flags say, and returns
// the infos of the closure, too.
func (p *program) pushClosure(c *cli.Context, files substitute.WritableFiles, args []string) (result substitute.PushResult, infos []*nix.PathInfo, err error) {
	w, err := cacheWriter(c, files)
	if err != nil {
		return result, nil, err
	}
	debug.SetMemoryLimit(cacheMemory)
	local, err := p.openLocal(c.Context, c.String("store"), toRead)
	if err != nil {
		return result, nil, err
	}
	defer func() { err = errors.Join(err, local.close()) }()
	if infos, err = local.held(c.Context, args); err != nil {
		return result, nil, err
	}
	meter := new(progress.Meter)
	defer p.screen.Show(meter)()
	w.Source, w.Meter = local, meter
	if result, err = w.Push(c.Context, infos); err != nil {
		return result, nil, pushFailed(c.Context, files, err)
	}
	if result.Other > 0 {
		p.log.Warn("the cache has other contents than this store for some paths, and they were not signed", "paths", result.Other)
	}
	return result, infos, nil
}

func pushFailed(ctx context.Context, files substitute.Files, err error) error {
	if errors.Is(context.Cause(ctx), errInterrupted) {
		return fmt.Errorf("push to %s: %w; what has arrived stays, and the same command sends the rest", files, errInterrupted)
	}
	return fmt.Errorf("push to %s: %w", files, err)
}

// cacheWriter reads the flags about how paths are put.
func cacheWriter(c *cli.Context, files substitute.WritableFiles) (*substitute.Writer, error) {
	w := &substitute.Writer{
		Files: files, StoreDir: storeDir(),
		Compression: substitute.Compression(c.String("compression")), Level: c.Int("compression-level"),
	}
	if err := w.Compression.CheckWritable(w.Level); err != nil {
		return nil, usagef("--compression: %v", err)
	}
	var err error
	w.Keys, err = readSecretKeys(c, "sign-with")
	return w, err
}

// held returns the infos of a closure, which is kept from garbage collection until the
// store is closed.
func (l *localEnd) held(ctx context.Context, args []string) ([]*nix.PathInfo, error) {
	roots, err := l.resolve(ctx, args)
	if err != nil {
		return nil, err
	}
	infos, err := l.closure(ctx, roots)
	if err != nil {
		return nil, &notInSourceError{err}
	}
	paths := make([]nix.StorePath, len(infos))
	for i, info := range infos {
		paths[i] = info.Path
	}
	return infos, l.source.(closure.Holder).Hold(ctx, paths)
}

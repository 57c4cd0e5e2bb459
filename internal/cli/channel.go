package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/copy-closure/copy-closure/internal/ui"
	"github.com/copy-closure/copy-closure/substitute"
)

// channelCommand makes what nix-channel subscribes to.
func (p *program) channelCommand() *cli.Command {
	return &cli.Command{
		Name:  "channel",
		Usage: "make channels for nix-channel",
		Subcommands: []*cli.Command{{
			Name: "publish", ArgsUsage: "EXPRESSIONS… [PATH…]", Usage: "put expressions, and the closures of store paths, beside a cache",
			Flags: joinFlags([]cli.Flag{
				&cli.StringFlag{Name: "to", Usage: "the cache, a `URL` as for cache push; the channel is URL/NAME"},
				&cli.StringFlag{Name: "name", Usage: "`NAME` of the channel"},
				&cli.StringFlag{Name: "cache-url", Usage: "how consumers reach the cache: `URL` (default: that of --to)"},
				storeFlag,
			}, packFlags, outputFlags),
			Action: p.channelPublish,
		}},
	}
}

func (p *program) channelPublish(c *cli.Context) error {
	if err := p.setOutput(c); err != nil {
		return err
	}
	if !c.IsSet("to") || !c.IsSet("name") || c.NArg() == 0 {
		return usagef("say %s channel publish --to URL --name NAME EXPRESSIONS… [PATH…]", p.name)
	}
	channel := &substitute.Channel{Name: c.String("name"), CacheURL: c.String("cache-url")}
	var args []string // store paths
	channel.Expressions, args = splitExpressions(c.Args().Slice())
	if err := channel.Check(); err != nil {
		return usagef("channel: %v", err)
	}
	var err error
	if channel.Revision, err = p.gitRevision(c.Context, channel.Expressions); err != nil {
		return err
	}
	files, err := p.openWritableCache(c.Context, c.String("to"))
	if err != nil {
		return err
	}
	if channel.CacheURL == "" {
		channel.CacheURL = files.String()
	}
	return p.publish(c, files, channel, args)
}

// publish puts the paths into the cache, and then the channel beside it.
func (p *program) publish(c *cli.Context, files substitute.WritableFiles, channel *substitute.Channel, args []string) error {
	started := time.Now()
	result, infos, err := p.pushClosure(c, files, args)
	if err != nil {
		return err
	}
	for _, info := range infos {
		channel.Paths = append(channel.Paths, info.Path)
	}
	if err := channel.Publish(c.Context, files); err != nil {
		return pushFailed(c.Context, files, err)
	}
	if !c.Bool("quiet") {
		fmt.Fprintf(p.screen, "published %s/%s: %s, %s of them new, %s\n", files, channel.Name,
			ui.Paths(len(infos)), ui.Count(result.Pushed), ui.Seconds(time.Since(started)))
	}
	return nil
}

// splitExpressions tells expressions from store paths, and from links to such.
func splitExpressions(args []string) (expressions, paths []string) {
	for _, arg := range args {
		if inStore(arg) {
			paths = append(paths, arg)
		} else {
			expressions = append(expressions, arg)
		}
	}
	return expressions, paths
}

func inStore(arg string) bool {
	if _, _, err := storeDir().Split(arg); err == nil {
		return true
	}
	target, err := os.Readlink(arg)
	if err != nil {
		return false
	}
	_, _, err = storeDir().Split(target)
	return err == nil
}

// gitRevision returns the commit of the first expression that lies in the top of a
// work tree of git, or nothing.
func (p *program) gitRevision(ctx context.Context, expressions []string) (string, error) {
	for _, name := range expressions {
		if _, err := os.Stat(filepath.Join(name, ".git")); err != nil {
			continue
		}
		out, err := exec.CommandContext(ctx, "git", "-C", name, "rev-parse", "HEAD").Output()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		if err != nil {
			return "", fmt.Errorf("revision of %s: git: %w", name, err)
		}
		return strings.TrimSpace(string(out)), nil
	}
	return "", nil
}

package cli

import "github.com/urfave/cli/v2"

// cacheCommand is about binary caches.
func (p *program) cacheCommand() *cli.Command {
	return &cli.Command{
		Name:        "cache",
		Usage:       "make and serve binary caches",
		Subcommands: []*cli.Command{p.cachePushCommand(), p.cacheServeCommand()},
	}
}

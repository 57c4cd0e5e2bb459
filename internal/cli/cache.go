package cli

import "github.com/urfave/cli/v2"

// cacheCommand is about binary caches.
func (p *program) cacheCommand() *cli.Command {
	return &cli.Command{
		Name:        "cache",
		Usage:       "make, serve and check binary caches",
		Subcommands: append(p.cacheLookCommands(), p.cachePushCommand(), p.cacheServeCommand()),
	}
}

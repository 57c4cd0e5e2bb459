// Copy-closure moves Nix store closures between machines over SSH.
package main

import (
	"os"

	"github.com/copy-closure/copy-closure/internal/cli"
)

func main() {
	os.Exit(cli.Main(os.Args))
}

package cli

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// keyCommand makes the keys that sign paths.
func (p *program) keyCommand() *cli.Command {
	return &cli.Command{
		Name:  "key",
		Usage: "make keys that sign paths",
		Subcommands: []*cli.Command{
			{
				Name: "generate", Usage: "print a new secret key",
				Flags:  []cli.Flag{&cli.StringFlag{Name: "name", Usage: "`NAME` of the key, such as cache.example.org-1"}},
				Action: p.keyGenerate,
			},
			{
				Name: "public", Usage: "print the public key of a secret key",
				Flags:  []cli.Flag{&cli.StringFlag{Name: "key", Usage: "`FILE` with the secret key (default: standard input)"}},
				Action: p.keyPublic,
			},
		},
	}
}

// keyGenerate prints the key without a line end, as Nix does.
func (p *program) keyGenerate(c *cli.Context) error {
	if !c.IsSet("name") || c.NArg() > 0 {
		return usagef("say %s key generate --name NAME, such as cache.example.org-1", p.name)
	}
	key, err := nix.GenerateSecretKey(c.String("name"))
	if err != nil {
		return usagef("--name: %v", err)
	}
	_, err = io.WriteString(p.stdout, key.Text())
	return err
}

func (p *program) keyPublic(c *cli.Context) error {
	if c.NArg() > 0 {
		return usagef("say %s key public --key FILE, or give the secret key on standard input", p.name)
	}
	key, err := p.readKey(c.String("key"))
	if err != nil {
		return err
	}
	_, err = io.WriteString(p.stdout, key.Public().String())
	return err
}

// readKey reads a secret key from a file, or from standard input if it has no name.
func (p *program) readKey(file string) (nix.SecretKey, error) {
	if file != "" {
		return readSecretKey(file)
	}
	const most = 4 << 10 // bytes
	text, err := io.ReadAll(io.LimitReader(p.stdin, most))
	if err != nil {
		return nix.SecretKey{}, fmt.Errorf("read a secret key from standard input: %w", err)
	}
	return nix.ParseSecretKey(string(text))
}

// readSecretKeys reads the keys of the files that a flag names.
func readSecretKeys(c *cli.Context, flag string) ([]nix.SecretKey, error) {
	var keys []nix.SecretKey
	for _, file := range c.StringSlice(flag) {
		key, err := readSecretKey(file)
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", flag, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

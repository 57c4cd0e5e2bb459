package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

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
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "name", Usage: "`NAME` of the key, such as cache.example.org-1"},
					&cli.StringFlag{Name: "output", Usage: "write the key to a new `FILE` that only its owner may read"},
				},
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

// keyGenerate prints the key without a line end, as Nix does. A file that standard output
// is becomes its owner's alone first.
func (p *program) keyGenerate(c *cli.Context) error {
	if !c.IsSet("name") || c.NArg() > 0 {
		return usagef("say %s key generate --name NAME, such as cache.example.org-1", p.name)
	}
	key, err := nix.GenerateSecretKey(c.String("name"))
	if err != nil {
		return usagef("--name: %v", err)
	}
	if file := c.String("output"); file != "" {
		return writeSecretKey(file, key)
	}
	if info, err := os.Stdout.Stat(); err == nil && info.Mode().IsRegular() {
		if err := os.Stdout.Chmod(0o600); err != nil {
			return fmt.Errorf("standard output, which others may read: %w", err)
		}
	}
	_, err = io.WriteString(p.stdout, key.Text())
	return err
}

// writeSecretKey makes a new file, which nobody else can open at any time.
func writeSecretKey(file string, key nix.SecretKey) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("--output: %w", err)
	}
	err = f.Chmod(0o600) // the umask may have left less
	if err == nil {
		_, err = f.WriteString(key.Text())
	}
	if err = cmp.Or(err, f.Sync(), f.Close()); err != nil {
		err = errors.Join(fmt.Errorf("--output: %w", err), os.Remove(file))
	}
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
	text, err := io.ReadAll(io.LimitReader(p.stdin, maxSecretKey))
	if err != nil {
		return nix.SecretKey{}, fmt.Errorf("read a secret key from standard input: %w", err)
	}
	return nix.ParseSecretKey(string(text))
}

// maxSecretKey bounds a file with a secret key in bytes.
const maxSecretKey = 4 << 10

// readSecretKey reads a secret key from a file, or from a pipe that has a name. As with
// ssh, others may not read the file; its group may if it belongs to another user, as we
// could not read it otherwise.
func readSecretKey(file string) (nix.SecretKey, error) {
	f, err := os.Open(file)
	if err != nil {
		return nix.SecretKey{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSecretKey))
	if err != nil {
		return nix.SecretKey{}, err
	}
	key, err := nix.ParseSecretKey(string(text))
	if err != nil {
		return nix.SecretKey{}, fmt.Errorf("%s: %w", file, err)
	}
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() {
		forbidden := fs.FileMode(0o077)
		if info.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
			forbidden = 0o007
		}
		err = checkPrivate(file, info, forbidden)
	}
	return key, err
}

// checkTLSKey refuses a key that everybody may read. Distributions give a group to the
// programs that use it.
func checkTLSKey(file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	return checkPrivate(file, info, 0o007)
}

// checkPrivate refuses a file with a secret that others may read or change.
func checkPrivate(file string, info fs.FileInfo, forbidden fs.FileMode) error {
	if mode := info.Mode().Perm(); mode&forbidden != 0 {
		return fmt.Errorf("%s: its mode is %04o, so that others may use the secret key in it; chmod 600 %s", file, mode, file)
	}
	return nil
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

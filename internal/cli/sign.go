package cli

import (
	"errors"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixconf"
	"github.com/copy-closure/copy-closure/internal/show"
	"github.com/copy-closure/copy-closure/internal/ui"
)

var recursiveFlag = &cli.BoolFlag{Name: "recursive", Aliases: []string{"r"}, Usage: "and all that the PATHs refer to"}

// signCommand adds signatures to paths of the local store.
func (p *program) signCommand() *cli.Command {
	return &cli.Command{
		Name: "sign", ArgsUsage: "PATH…", Usage: "sign paths of the local store",
		Flags: append([]cli.Flag{
			&cli.StringSliceFlag{Name: "key", Usage: "`FILE` with a secret key (repeatable)"},
			recursiveFlag, storeFlag,
		}, logFlags...),
		Action: func(c *cli.Context) error {
			if !c.IsSet("key") {
				return usagef("say %s sign --key FILE PATH…; %s key generate makes a key", p.name, p.name)
			}
			err := p.runStore(c, "sign", "PATH…", toWrite, storeSign)
			if errors.Is(err, localstore.ErrReadOnly) {
				err = fmt.Errorf("%w; sign as root, or on the way: --to HOST --sign-with FILE", err)
			}
			return err
		},
	}
}

func storeSign(r *storeRun) error {
	keys, err := readSecretKeys(r.c, "key")
	if err != nil {
		return err
	}
	infos, err := r.infos()
	if err != nil {
		return err
	}
	signed := 0
	for _, info := range infos {
		sigs, err := info.SignedWith(keys)
		if err != nil {
			return err
		}
		added, err := r.local.addSignatures(r.ctx, info, sigs)
		if err != nil {
			return fmt.Errorf("sign %s: %w", info.Path, err)
		}
		if added > 0 {
			signed++
		}
	}
	others := ""
	if signed < len(infos) {
		others = ", the others were signed already"
	}
	fmt.Fprintf(r.screen, "signed %s of %s%s\n", ui.Count(signed), ui.Paths(len(infos)), others)
	return nil
}

// infos returns the infos of the arguments, and of their closure if it is wanted.
func (r *storeRun) infos() ([]*nix.PathInfo, error) {
	if err := r.some(); err != nil {
		return nil, err
	}
	roots, err := r.paths(r.args)
	if err != nil {
		return nil, err
	}
	if r.c.Bool("recursive") {
		infos, err := r.local.closure(r.ctx, roots)
		if err != nil {
			return nil, &notInSourceError{err}
		}
		return infos, nil
	}
	infos, err := r.local.infos(r.ctx, roots)
	if err != nil {
		return nil, &notInSourceError{err}
	}
	return infos, nil
}

// verifyCommand holds paths of the local store against their hashes and signatures.
func (p *program) verifyCommand() *cli.Command {
	return &cli.Command{
		Name: "verify", ArgsUsage: "PATH…", Usage: "check contents and signatures of paths of the local store",
		Flags: append([]cli.Flag{
			recursiveFlag, storeFlag,
			&cli.IntFlag{Name: "sigs-needed", Usage: "`N` trusted keys must have signed each path (default: one, if it was not built here)"},
			trustedKeyFlag,
			&cli.BoolFlag{Name: "no-trust", Usage: "do not look at signatures"},
			&cli.BoolFlag{Name: "no-contents", Usage: "do not hash the contents"},
		}, logFlags...),
		Action: func(c *cli.Context) error { return p.runStore(c, "verify", "PATH…", toLook, storeVerifyTrust) },
	}
}

var trustedKeyFlag = &cli.StringSliceFlag{Name: "trusted-public-key", Usage: "believe `KEY`, too (repeatable)"}

// configuredKeys returns the keys that the configuration trusts.
func configuredKeys() (nix.TrustedKeys, error) {
	conf, err := nixconf.Load(os.LookupEnv)
	if err != nil {
		return nil, err
	}
	return conf.TrustedKeys()
}

// trustedKeys returns the keys of the configuration and of --trusted-public-key.
func trustedKeys(c *cli.Context) (nix.TrustedKeys, error) {
	keys, err := configuredKeys()
	if err != nil {
		return nil, err
	}
	for _, text := range c.StringSlice("trusted-public-key") {
		key, err := nix.ParsePublicKey(text)
		if err != nil {
			return nil, usagef("--trusted-public-key: %v", err)
		}
		keys.Add(key)
	}
	return keys, nil
}

// storeVerifyTrust prints a line for each finding.
func storeVerifyTrust(r *storeRun) error {
	keys, err := trustedKeys(r.c)
	if err != nil {
		return err
	}
	infos, err := r.infos()
	if err != nil {
		return err
	}
	var damaged, untrusted int
	for _, info := range infos {
		if err := r.checkTrusted(info, keys); err != nil {
			untrusted++
			fmt.Fprintln(r.stdout, show.Line(err.Error()))
		}
		if r.c.Bool("no-contents") {
			continue
		}
		report := func(_ nix.StorePath, err error) {
			if err != nil {
				damaged++
				fmt.Fprintln(r.stdout, show.Line(err.Error()))
			}
		}
		if err := r.local.verify(r.ctx, []nix.StorePath{info.Path}, report); err != nil {
			return err
		}
	}
	return r.verdict(len(infos), damaged, untrusted)
}

// checkTrusted is as strict as nix store verify.
func (r *storeRun) checkTrusted(info *nix.PathInfo, keys nix.TrustedKeys) error {
	needed := r.c.Int("sigs-needed")
	if r.c.Bool("no-trust") || needed == 0 && info.Ultimate {
		return nil
	}
	return checkSigned(info, keys, max(needed, 1))
}

// verdict is the last word of a verification.
func (p *program) verdict(checked, damaged, untrusted int) error {
	var errs []error
	if damaged > 0 {
		errs = append(errs, fmt.Errorf("%d of %s: %w", damaged, ui.Paths(checked), nix.ErrDamaged))
	}
	if untrusted > 0 {
		errs = append(errs, fmt.Errorf("%d of %s: %w", untrusted, ui.Paths(checked), nix.ErrNotTrusted))
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	fmt.Fprintf(p.screen, "verified %s\n", ui.Paths(checked))
	return nil
}

// checkSigned wants the signatures of some trusted keys; a content address is as
// good as any number of them, since whoever reads the contents can check it.
func checkSigned(info *nix.PathInfo, keys nix.TrustedKeys, needed int) error {
	if info.ContentAddressed() {
		return nil
	}
	if n := len(keys.Signers(info)); n < needed {
		return fmt.Errorf("%s: %d trusted keys have signed it, want %d: %w", info.Path, n, needed, nix.ErrNotTrusted)
	}
	return nil
}

// signInFlight gives infos that are about to be sent further signatures; the store
// that they come from stays as it is.
func signInFlight(infos []*nix.PathInfo, keys []nix.SecretKey) error {
	for _, info := range infos {
		var err error
		if info.Signatures, err = info.SignedWith(keys); err != nil {
			return err
		}
	}
	return nil
}

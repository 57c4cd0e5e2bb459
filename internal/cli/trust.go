package cli

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixconf"
)

// acceptance returns the check that this machine's configuration asks of paths
// from elsewhere: a signature by a trusted key, or a content address. What the URI of the
// store says comes first. The error of the check is nix.ErrNotTrusted.
func (p *program) acceptance() (func(*nix.PathInfo) error, error) { return p.acceptanceBy(nil) }

// acceptanceBy is acceptance where further keys are trusted.
func (p *program) acceptanceBy(further []string) (func(*nix.PathInfo) error, error) {
	conf, err := nixconf.Load(os.LookupEnv)
	if err != nil {
		return nil, err
	}
	required := conf.RequireSignatures()
	if p.requireSigs != nil {
		required = *p.requireSigs
	}
	if !required {
		return func(*nix.PathInfo) error { return nil }, nil
	}
	keys, err := conf.TrustedKeys()
	if err != nil {
		return nil, err
	}
	more, err := nix.NewTrustedKeys(further...)
	if err != nil {
		return nil, usagef("--trusted-public-key: %v", err)
	}
	for _, key := range more {
		keys.Add(key)
	}
	return func(info *nix.PathInfo) error {
		if keys.Trusts(info) {
			return nil
		}
		return fmt.Errorf("%s lacks a signature by a trusted key: %w", info.Path, nix.ErrNotTrusted)
	}, nil
}

// checkTrust refuses a pull whose paths nobody vouches for, naming all of them.
func (r *copyRun) checkTrust(infos []*nix.PathInfo) error {
	check, err := r.acceptanceBy(r.caches.keys)
	if err != nil {
		return err
	}
	var untrusted []string
	for _, info := range slices.Backward(infos) { // what was asked for comes first
		if check(info) != nil {
			untrusted = append(untrusted, info.Path.String())
		}
	}
	if len(untrusted) == 0 {
		return nil
	}
	const most = 10
	list := untrusted[:min(len(untrusted), most)]
	more := ""
	if n := len(untrusted) - len(list); n > 0 {
		more = fmt.Sprintf("\n  and %d more", n)
	}
	return fmt.Errorf("%d of %d paths: %w; nothing was copied. Neither a key in trusted-public-keys nor a content address vouches for\n  %s%s\nSign them at the source, add its key to trusted-public-keys, or say --no-check-sigs",
		len(untrusted), len(infos), nix.ErrNotTrusted, strings.Join(list, "\n  "), more)
}

package substitute

import "github.com/copy-closure/copy-closure/internal/nix"

// A Signer signs what leaves a store. Its signature says "this machine vouches for
// this path", so it is given only to paths for which that is true, unless All is
// set. The zero Signer signs nothing.
type Signer struct {
	Keys    []nix.SecretKey
	Trusted nix.TrustedKeys // whose signatures are as good as our own knowledge
	All     bool            // sign whatever is in the store
}

// Sign returns the signatures of info: those that it has, and those of s. It does
// not change info.
func (s *Signer) Sign(info *nix.PathInfo) ([]string, error) {
	if len(s.Keys) == 0 || !s.vouches(info) {
		return info.Signatures, nil
	}
	return info.SignedWith(s.Keys)
}

// vouches reports whether this machine has built the path, or has it from somebody
// whom it trusts, or can tell from the NAR's hash alone that the path is what its
// content address says. Content addresses over something else than the NAR would
// have to be computed; such paths need no signature anywhere.
func (s *Signer) vouches(info *nix.PathInfo) bool {
	if s.All || info.Ultimate || len(s.Trusted.Signers(info)) > 0 {
		return true
	}
	ca := nix.ContentAddress{Method: nix.Recursive, Hash: info.NARHash}
	return info.CA == ca.String() && info.CheckContentAddress() == nil
}

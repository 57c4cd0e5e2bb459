package nix

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxSignatures is how many signatures of a path are kept and passed on. Every reader
	// of path infos takes that many.
	MaxSignatures = 128

	maxSignature = 512 // bytes
)

// A PublicKey verifies signatures made under its name.
type PublicKey struct {
	Name string // conventionally host-1
	Key  ed25519.PublicKey
}

// A SecretKey signs path infos.
type SecretKey struct {
	Name string
	Key  ed25519.PrivateKey
}

// GenerateSecretKey makes a new key of that name.
func GenerateSecretKey(name string) (SecretKey, error) {
	if name == "" || strings.ContainsAny(name, ": \t\r\n") {
		return SecretKey{}, errors.New("the name of a key is not empty and has neither colon nor white space")
	}
	_, key, err := ed25519.GenerateKey(nil)
	return SecretKey{name, key}, err
}

// ParsePublicKey reads name:base64. Surrounding white space is ignored.
func ParsePublicKey(s string) (PublicKey, error) {
	name, raw, err := splitKey(s, ed25519.PublicKeySize)
	if err != nil {
		return PublicKey{}, fmt.Errorf("public key: %w", err)
	}
	return PublicKey{name, raw}, nil
}

// ParseSecretKey reads name:base64, where the bytes are the seed followed by the
// public key. Surrounding white space is ignored. Errors do not show the text.
func ParseSecretKey(s string) (SecretKey, error) {
	name, raw, err := splitKey(s, ed25519.PrivateKeySize)
	if err != nil {
		return SecretKey{}, fmt.Errorf("secret key: %w", err)
	}
	key := ed25519.PrivateKey(raw)
	if !ed25519.NewKeyFromSeed(key.Seed()).Equal(key) {
		return SecretKey{}, fmt.Errorf("secret key %q: its public half does not belong to it", clip(name))
	}
	return SecretKey{name, key}, nil
}

func splitKey(s string, size int) (name string, raw []byte, err error) {
	name, text, ok := strings.Cut(strings.TrimSpace(s), ":")
	if !ok || name == "" {
		return "", nil, fmt.Errorf("it is not in the form name:base64")
	}
	raw, err = base64.StdEncoding.DecodeString(text)
	if err != nil {
		return "", nil, fmt.Errorf("%q: its base64 is damaged", clip(name))
	}
	if len(raw) != size {
		return "", nil, fmt.Errorf("%q: it has %d bytes, want %d", clip(name), len(raw), size)
	}
	return name, raw, nil
}

// String returns name:base64.
func (k PublicKey) String() string {
	return k.Name + ":" + base64.StdEncoding.EncodeToString(k.Key)
}

// Text returns name:base64, the content of a secret key file. It is not called
// String, lest a key be printed by accident.
func (k SecretKey) Text() string {
	return k.Name + ":" + base64.StdEncoding.EncodeToString(k.Key)
}

// Public returns the key that verifies what k signs.
func (k SecretKey) Public() PublicKey {
	return PublicKey{k.Name, k.Key.Public().(ed25519.PublicKey)}
}

// Sign returns k's signature of info as name:base64.
func (k SecretKey) Sign(info *PathInfo) (string, error) {
	text, err := info.Fingerprint()
	if err != nil {
		return "", err
	}
	sig := ed25519.Sign(k.Key, []byte(text))
	return k.Name + ":" + base64.StdEncoding.EncodeToString(sig), nil
}

// TrustedKeys are the keys that a store believes, by name.
type TrustedKeys map[string]PublicKey

// NewTrustedKeys parses the words of a trusted-public-keys setting.
func NewTrustedKeys(words ...string) (TrustedKeys, error) {
	keys := make(TrustedKeys, len(words))
	for _, word := range words {
		key, err := ParsePublicKey(word)
		if err != nil {
			return nil, err
		}
		keys.Add(key)
	}
	return keys, nil
}

// Add adds a key, unless there is one of that name already: of several keys with one
// name Nix trusts the first.
func (keys TrustedKeys) Add(key PublicKey) {
	if _, known := keys[key.Name]; !known {
		keys[key.Name] = key
	}
}

// Trusts reports whether one of info's signatures verifies under one of the keys,
// or info is content-addressed and its address agrees with its path. A content
// address says what the content must be; whoever stores it must still hash it. An address
// that we cannot verify counts for nothing.
func (keys TrustedKeys) Trusts(info *PathInfo) bool {
	return info.ContentAddressed() || len(keys.Signers(info)) > 0
}

// Signers returns the names of those of the keys that have signed info, each once.
func (keys TrustedKeys) Signers(info *PathInfo) []string {
	text, err := info.Fingerprint()
	if err != nil {
		return nil
	}
	var names []string
	for _, sig := range info.Signatures {
		name, encoded, _ := strings.Cut(sig, ":")
		key, ok := keys[name]
		if !ok || slices.Contains(names, name) {
			continue
		}
		raw, err := base64.StdEncoding.DecodeString(encoded)
		if err == nil && ed25519.Verify(key.Key, []byte(text), raw) {
			names = append(names, name)
		}
	}
	return names
}

// SignedWith returns info's signatures, followed by those of the keys that have not
// signed it. It does not change info.
func (info *PathInfo) SignedWith(keys []SecretKey) ([]string, error) {
	var added []string
	for _, key := range keys {
		if len(TrustedKeys{key.Name: key.Public()}.Signers(info)) > 0 {
			continue
		}
		sig, err := key.Sign(info)
		if err != nil {
			return nil, fmt.Errorf("sign with %s: %w", key.Name, err)
		}
		added = append(added, sig)
	}
	return MergeSignatures(info.Signatures, added), nil
}

// CheckSignature returns an error unless sig has the form name:base64 of an Ed25519
// signature. It may be wrong all the same.
func CheckSignature(sig string) error {
	name, encoded, ok := strings.Cut(sig, ":")
	if !ok || name == "" || len(sig) > maxSignature || !utf8.ValidString(name) {
		return fmt.Errorf("signature %q is not in the form name:base64", clip(sig))
	}
	if strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsGraphic(r) || unicode.IsSpace(r) }) {
		return fmt.Errorf("signature %q: its key cannot have that name", clip(sig))
	}
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(raw) != ed25519.SignatureSize || strings.ContainsAny(encoded, "\r\n") {
		return fmt.Errorf("signature %q is not the base64 of %d bytes", clip(sig), ed25519.SignatureSize)
	}
	return nil
}

// AppendSignature appends sig to a path's signatures, unless it is one of them, has not the
// form of one, or they are too many. What a store, a cache or another machine says passes
// through it, so that whatever is kept can be passed on.
func AppendSignature(sigs []string, sig string) []string {
	if len(sigs) >= MaxSignatures || slices.Contains(sigs, sig) || CheckSignature(sig) != nil {
		return sigs
	}
	return append(sigs, sig)
}

// MergeSignatures returns had followed by added. Where they are too many it leaves out the
// last of had. It does not change either.
func MergeSignatures(had, added []string) []string {
	var all, more []string
	for _, sig := range added {
		more = AppendSignature(more, sig)
	}
	for _, sig := range had {
		if len(all)+len(more) < MaxSignatures && !slices.Contains(more, sig) {
			all = AppendSignature(all, sig)
		}
	}
	return append(all, more...)
}

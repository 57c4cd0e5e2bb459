package nix

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// MaxRealisation is the longest text of a realisation that is read, in bytes.
const MaxRealisation = 1 << 20

// ErrNoRealisation says that a store does not know what was built of an output.
var ErrNoRealisation = errors.New("no realisation is known")

// A DrvOutput names an output of a derivation whose path is not known before it is built.
type DrvOutput struct {
	Drv    Hash // SHA-256, of the derivation modulo its fixed outputs
	Output string
}

// ParseDrvOutput reads the form sha256:HEX!OUTPUT. Nix writes no other.
func ParseDrvOutput(s string) (DrvOutput, error) {
	hash, output, _ := strings.Cut(s, "!")
	drv, err := ParseHash(hash)
	id := DrvOutput{drv, output}
	if err != nil || drv.Algorithm() != SHA256 || CheckName(output) != nil || id.String() != s {
		return DrvOutput{}, fmt.Errorf("%q is not in the form sha256:HEX!OUTPUT", clip(s))
	}
	return id, nil
}

// String returns sha256:HEX!OUTPUT.
func (id DrvOutput) String() string { return id.DrvText() + "!" + id.Output }

// DrvText returns sha256:HEX.
func (id DrvOutput) DrvText() string { return string(SHA256) + ":" + id.Drv.Hex() }

// A Realisation says which path a build has made of an output.
type Realisation struct {
	ID           DrvOutput
	Path         StorePath
	Signatures   []string
	Dependencies map[DrvOutput]StorePath // realisations that the build has used and the path refers to
}

// realisationJSON has its fields in the order of their names, as Nix signs them.
type realisationJSON struct {
	Dependencies map[string]string `json:"dependentRealisations"`
	ID           string            `json:"id"`
	Path         string            `json:"outPath"`
	Signatures   []string          `json:"signatures,omitzero"`
}

// ParseRealisation reads Nix's JSON. Malformed signatures are left out.
func (d StoreDir) ParseRealisation(text string) (*Realisation, error) {
	var j realisationJSON
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return nil, fmt.Errorf("realisation: %w", err)
	}
	r := &Realisation{Dependencies: make(map[DrvOutput]StorePath, len(j.Dependencies))}
	var err error
	if r.ID, err = ParseDrvOutput(j.ID); err == nil {
		r.Path, err = d.ParseBase(j.Path)
	}
	if err != nil {
		return nil, fmt.Errorf("realisation: %w", err)
	}
	for _, sig := range j.Signatures {
		r.Signatures = AppendSignature(r.Signatures, sig)
	}
	for word, base := range j.Dependencies {
		id, err := ParseDrvOutput(word)
		if err == nil {
			r.Dependencies[id], err = d.ParseBase(base)
		}
		if err != nil {
			return nil, fmt.Errorf("realisation of %s: dependency: %w", r.ID, err)
		}
	}
	return r, nil
}

// Text returns the JSON that Nix writes.
func (r *Realisation) Text() string {
	j := r.json()
	j.Signatures = append([]string{}, r.Signatures...)
	return j.text()
}

// fingerprint is what is signed.
func (r *Realisation) fingerprint() string { return r.json().text() }

func (r *Realisation) json() realisationJSON {
	j := realisationJSON{Dependencies: make(map[string]string), ID: r.ID.String(), Path: r.Path.Base()}
	for id, path := range r.Dependencies {
		j.Dependencies[id.String()] = path.Base()
	}
	return j
}

func (j realisationJSON) text() string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.Encode(j) // strings alone: it cannot fail
	return strings.TrimSuffix(b.String(), "\n")
}

// SignedBy reports whether one of the keys has signed r.
func (r *Realisation) SignedBy(keys TrustedKeys) bool {
	text := []byte(r.fingerprint())
	return slices.ContainsFunc(r.Signatures, func(sig string) bool {
		name, encoded, _ := strings.Cut(sig, ":")
		raw, err := base64.StdEncoding.DecodeString(encoded)
		key, known := keys[name]
		return err == nil && known && ed25519.Verify(key.Key, text, raw)
	})
}

// Sign adds the signatures of those keys that have not signed r.
func (r *Realisation) Sign(keys []SecretKey) {
	for _, key := range keys {
		if !r.SignedBy(TrustedKeys{key.Name: key.Public()}) {
			raw := ed25519.Sign(key.Key, []byte(r.fingerprint()))
			r.Signatures = MergeSignatures(r.Signatures, []string{key.Name + ":" + base64.StdEncoding.EncodeToString(raw)})
		}
	}
}

// SortedDependencies returns the outputs that r depends on.
func (r *Realisation) SortedDependencies() []DrvOutput {
	return slices.SortedFunc(maps.Keys(r.Dependencies), func(a, b DrvOutput) int { return strings.Compare(a.String(), b.String()) })
}

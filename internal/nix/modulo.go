package nix

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// A DerivationHash is what stands for a derivation in the hash of those that depend on
// it. It does not change with the way in which fixed outputs are made.
type DerivationHash struct {
	sum   [sha256.Size]byte
	fixed bool
	// deferred: the paths of what depends on it are known when its outputs are built.
	deferred bool
}

// NeedsInputs reports whether Hash and CheckOutputs ask for the hashes of the inputs.
func (drv *Derivation) NeedsInputs() bool {
	return len(drv.Outputs) > 0 && drv.Outputs[0].kind == inputAddressed
}

// Hash returns the hash of a derivation; inputs returns those of the derivations that it
// depends on. The derivation's own outputs are not checked.
func (drv *Derivation) Hash(inputs func(StorePath) (DerivationHash, error)) (DerivationHash, error) {
	if err := drv.checkKinds(); err != nil {
		return DerivationHash{}, err
	}
	switch out := drv.Outputs[0]; out.kind {
	case inputAddressed:
		return drv.hash(inputs, false)
	case fixedOutput:
		text := "fixed:out:" + out.algorithm + ":" + out.hash.Hex() + ":" + out.Path.String()
		return DerivationHash{sum: sha256.Sum256([]byte(text)), fixed: true}, nil
	}
	return DerivationHash{deferred: true}, nil
}

// hash hashes the text of a derivation in which the hashes of the inputs replace their
// paths; mask makes the paths of its outputs empty.
func (drv *Derivation) hash(inputs func(StorePath) (DerivationHash, error), mask bool) (DerivationHash, error) {
	replaced := make(map[string][]string, len(drv.Inputs))
	for _, in := range drv.Inputs {
		h, err := inputs(in.Path)
		if err != nil {
			return DerivationHash{}, err
		}
		if h.deferred {
			return DerivationHash{deferred: true}, nil
		}
		for _, output := range in.Outputs {
			if h.fixed && output != "out" {
				return DerivationHash{}, fmt.Errorf("its input %s has no output %q", in.Path, clip(output))
			}
			digest := hex.EncodeToString(h.sum[:])
			replaced[digest] = append(replaced[digest], output)
		}
	}
	sum := sha256.New()
	w := &drvWriter{bufio.NewWriter(sum)}
	w.derivation(drv, replaced, mask)
	w.Flush() // a hash takes everything
	return DerivationHash{sum: [sha256.Size]byte(sum.Sum(nil))}, nil
}

// CheckOutputs returns an error unless the output paths of a derivation follow from it, as
// Nix demands when it registers one: the path of each output, and the variable of that
// name, must be the computed path. inputs returns the hashes of the derivations that it
// depends on.
func (drv *Derivation) CheckOutputs(d StoreDir, inputs func(StorePath) (DerivationHash, error)) error {
	if err := drv.checkKinds(); err != nil {
		return err
	}
	var own DerivationHash
	if drv.NeedsInputs() {
		var err error
		if own, err = drv.hash(inputs, true); err != nil {
			return err
		}
		if own.deferred {
			return errors.New("the paths of its outputs cannot be known before its inputs are built")
		}
	}
	for _, out := range drv.Outputs {
		if err := drv.checkOutput(d, out, own); err != nil {
			return err
		}
	}
	return nil
}

func (drv *Derivation) checkOutput(d StoreDir, out DerivationOutput, own DerivationHash) error {
	want := out.Path // computed already, or not known
	if out.kind == inputAddressed {
		name := outputPathName(drv.Name, out.Name)
		if err := CheckName(name); err != nil {
			return fmt.Errorf("output %q: %w", clip(out.Name), err)
		}
		want = d.makePath("output:"+out.Name, hex.EncodeToString(own.sum[:]), name)
	}
	if want.IsZero() {
		return nil
	}
	if out.Path != want {
		return fmt.Errorf("its output %q claims the path %s, which should be %s", clip(out.Name), out.Path, want)
	}
	value, _ := drv.env(out.Name)
	if p, err := d.parseUnclean(value); err != nil || p != want {
		return fmt.Errorf("its variable %q is %q, should be %s", clip(out.Name), clip(value), want)
	}
	return nil
}

// A drvWriter writes the text of derivations.
type drvWriter struct{ *bufio.Writer }

// derivation writes drv with inputs in place of its own.
func (w *drvWriter) derivation(drv *Derivation, inputs map[string][]string, mask bool) {
	w.WriteString("Derive([")
	for i, out := range drv.Outputs {
		w.comma(i)
		path := out.Path.String()
		if mask {
			path = ""
		}
		digest := out.hash.Hex()
		if out.kind == impure {
			digest = "impure"
		}
		w.tuple(w.raw, out.Name, path, out.algorithm, digest)
	}
	w.WriteString("],[")
	for i, input := range slices.Sorted(maps.Keys(inputs)) {
		w.comma(i)
		w.WriteByte('(')
		w.raw(input)
		w.WriteByte(',')
		w.list(w.raw, sortUnique(inputs[input], strings.Compare))
		w.WriteByte(')')
	}
	w.WriteString("],[")
	for i, p := range drv.Sources {
		w.comma(i)
		w.raw(p.String())
	}
	w.WriteString("],")
	w.raw(drv.System)
	w.WriteByte(',')
	w.quoted(drv.Builder)
	w.WriteByte(',')
	w.list(w.quoted, drv.Args)
	w.WriteString(",[")
	outputs := make(map[string]bool, len(drv.Outputs))
	for _, out := range drv.Outputs {
		outputs[out.Name] = mask
	}
	for i, v := range drv.Env {
		w.comma(i)
		if outputs[v.Name] {
			v.Value = ""
		}
		w.tuple(w.quoted, v.Name, v.Value)
	}
	w.WriteString("])")
}

func (w *drvWriter) comma(i int) {
	if i > 0 {
		w.WriteByte(',')
	}
}

func (w *drvWriter) tuple(write func(string), words ...string) {
	w.WriteByte('(')
	w.words(write, words)
	w.WriteByte(')')
}

func (w *drvWriter) list(write func(string), words []string) {
	w.WriteByte('[')
	w.words(write, words)
	w.WriteByte(']')
}

func (w *drvWriter) words(write func(string), words []string) {
	for i, word := range words {
		w.comma(i)
		write(word)
	}
}

// raw writes a string as Nix writes names and paths: without escapes.
func (w *drvWriter) raw(s string) {
	w.WriteByte('"')
	w.WriteString(s)
	w.WriteByte('"')
}

var drvEscapes = strings.NewReplacer(`"`, `\"`, `\`, `\\`, "\n", `\n`, "\r", `\r`, "\t", `\t`)

func (w *drvWriter) quoted(s string) {
	w.WriteByte('"')
	drvEscapes.WriteString(io.Writer(w), s)
	w.WriteByte('"')
}

package nix

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// drvExtension ends the names of derivation files.
const drvExtension = ".drv"

// maxDerivationItems bounds the memory that a derivation takes: outputs, inputs,
// arguments and variables.
const maxDerivationItems = 1 << 20

// A Derivation is the content of a .drv file. Outputs, inputs, sources and variables are
// sorted, each once, as in the text that Nix writes.
type Derivation struct {
	Name    string // of the file, without .drv
	Outputs []DerivationOutput
	Inputs  []DerivationInput
	Sources []StorePath
	System  string
	Builder string
	Args    []string
	Env     []EnvVar
}

// A DerivationOutput is one output of a derivation. Path is zero where it is only
// known after the build. The path of a fixed output is computed from its hash, whatever
// the text says.
type DerivationOutput struct {
	Name string
	Path StorePath

	kind      outputKind
	algorithm string // as in the text, such as r:sha256
	hash      Hash   // of a fixed output
}

// A DerivationInput is a derivation that another one depends on, and the outputs of it
// that are needed.
type DerivationInput struct {
	Path    StorePath
	Outputs []string
}

// An EnvVar is a variable of a builder's environment.
type EnvVar struct{ Name, Value string }

// An outputKind says how the path of an output is found.
type outputKind int

const (
	inputAddressed outputKind = iota // from the derivation
	fixedOutput                      // from the hash that the derivation promises
	floating                         // from the hash of what was built
	deferred                         // from the derivation, once its inputs are built
	impure                           // from the hash of what was built, each time anew
)

// ParseDerivation reads the text of the .drv file p (the ATerm form
// Derive([outputs],[inputs],[sources],system,builder,[args],[env])). It accepts what Nix
// accepts: Nix ignores what follows the closing parenthesis, and a comma before the first
// item of a list.
//
// Strings of the result may share memory with text; paths do not.
func (d StoreDir) ParseDerivation(p StorePath, text string) (*Derivation, error) {
	name, ok := strings.CutSuffix(p.Name(), drvExtension)
	if !ok {
		return nil, fmt.Errorf("%s is not the name of a derivation", p)
	}
	parser := &drvParser{text: text, dir: d, name: name}
	drv := parser.derivation()
	if parser.err != nil {
		return nil, fmt.Errorf("derivation text at byte %d: %w", parser.pos, parser.err)
	}
	drv.canonicalize()
	return drv, nil
}

// canonicalize sorts what Nix keeps in sorted maps. Of outputs with the same name Nix
// keeps the first, of other items the last.
func (drv *Derivation) canonicalize() {
	drv.Outputs = sortUnique(drv.Outputs, func(a, b DerivationOutput) int { return cmp.Compare(a.Name, b.Name) })
	slices.Reverse(drv.Inputs)
	drv.Inputs = sortUnique(drv.Inputs, func(a, b DerivationInput) int { return a.Path.Compare(b.Path) })
	drv.Sources = sortUnique(drv.Sources, StorePath.Compare)
	slices.Reverse(drv.Env)
	drv.Env = sortUnique(drv.Env, func(a, b EnvVar) int { return cmp.Compare(a.Name, b.Name) })
}

// sortUnique keeps the first of equal items.
func sortUnique[T any](items []T, compare func(a, b T) int) []T {
	slices.SortStableFunc(items, compare)
	return slices.CompactFunc(items, func(a, b T) bool { return compare(a, b) == 0 })
}

// checkKinds returns an error unless the outputs are of one kind, as Nix demands.
func (drv *Derivation) checkKinds() error {
	if len(drv.Outputs) == 0 {
		return errors.New("it has no outputs")
	}
	first := drv.Outputs[0]
	for _, out := range drv.Outputs {
		if out.kind != first.kind {
			return errors.New("its outputs are of different kinds")
		}
		if out.kind == floating && out.hashAlgorithm() != first.hashAlgorithm() {
			return errors.New("its outputs have different hash algorithms")
		}
	}
	if first.kind == fixedOutput && (len(drv.Outputs) > 1 || first.Name != "out") {
		return errors.New(`it has a fixed output, and another or one that is not named "out"`)
	}
	return nil
}

func (out DerivationOutput) hashAlgorithm() HashAlgorithm {
	return HashAlgorithm(out.algorithm[strings.LastIndexByte(out.algorithm, ':')+1:])
}

// env returns the value of a variable.
func (drv *Derivation) env(name string) (string, bool) {
	i, found := slices.BinarySearchFunc(drv.Env, name, func(v EnvVar, name string) int { return cmp.Compare(v.Name, name) })
	if !found {
		return "", false
	}
	return drv.Env[i].Value, true
}

// drvParser keeps its first error and does nothing after it.
type drvParser struct {
	text  string
	pos   int
	dir   StoreDir
	name  string // of the derivation
	items int
	err   error
}

func (p *drvParser) derivation() *Derivation {
	drv := &Derivation{Name: p.name}
	p.expect("Derive(")
	p.list(func() { drv.Outputs = append(drv.Outputs, p.output()) })
	p.expect(",")
	p.list(func() {
		p.expect("(")
		in := DerivationInput{Path: p.path()}
		p.expect(",")
		p.list(func() { in.Outputs = append(in.Outputs, p.str()) })
		p.expect(")")
		in.Outputs = sortUnique(in.Outputs, strings.Compare)
		drv.Inputs = append(drv.Inputs, in)
	})
	p.expect(",")
	p.list(func() { drv.Sources = append(drv.Sources, p.path()) })
	p.expect(",")
	drv.System = p.str()
	p.expect(",")
	drv.Builder = p.str()
	p.expect(",")
	p.list(func() { drv.Args = append(drv.Args, p.str()) })
	p.expect(",")
	p.list(func() {
		p.expect("(")
		name := p.str()
		p.expect(",")
		drv.Env = append(drv.Env, EnvVar{name, p.str()})
		p.expect(")")
	})
	p.expect(")")
	return drv
}

func (p *drvParser) output() (out DerivationOutput) {
	p.expect("(")
	out.Name = p.str()
	p.expect(",")
	where := p.str()
	p.expect(",")
	out.algorithm = p.str()
	p.expect(",")
	digest := p.str()
	p.expect(")")
	if p.err == nil {
		p.err = p.dir.resolveOutput(&out, p.name, where, digest)
	}
	return out
}

// resolveOutput finds the kind and the path of an output of which the text says where it
// is and what its hash is.
func (d StoreDir) resolveOutput(out *DerivationOutput, drvName, where, digest string) (err error) {
	// These are kept for long, and the text should not be.
	out.Name, out.algorithm = strings.Clone(out.Name), strings.Clone(out.algorithm)
	method, algorithm := Flat, HashAlgorithm(out.algorithm)
	if rest, ok := strings.CutPrefix(out.algorithm, "r:"); ok {
		method, algorithm = Recursive, HashAlgorithm(rest)
	} else if rest, ok := strings.CutPrefix(out.algorithm, "git:"); ok {
		method, algorithm = Git, HashAlgorithm(rest)
	}
	switch {
	case out.algorithm == "" && where == "":
		out.kind = deferred
		return nil
	case out.algorithm == "":
		out.Path, err = d.parseUnclean(where)
		return err
	case algorithm.size() == 0:
		return fmt.Errorf("unknown hash algorithm %q", clip(out.algorithm))
	case digest == "" || digest == "impure":
		if out.kind = floating; digest != "" {
			out.kind = impure
		}
		if where != "" {
			return fmt.Errorf("the path of output %q cannot be known", clip(out.Name))
		}
		return nil
	case !path.IsAbs(where):
		return fmt.Errorf("the path of output %q is not absolute", clip(out.Name))
	}
	out.kind = fixedOutput
	if out.hash, err = ParseDigest(algorithm, digest); err != nil {
		return err
	}
	out.Path, err = d.ContentAddressedPath(outputPathName(drvName, out.Name), ContentAddress{method, out.hash}, nil, false)
	return err
}

// outputPathName returns the name of an output's store path.
func outputPathName(drvName, output string) string {
	if output == "out" {
		return drvName
	}
	return drvName + "-" + output
}

func (p *drvParser) path() (sp StorePath) {
	if s := p.str(); p.err == nil {
		sp, p.err = p.dir.parseUnclean(s)
	}
	return sp
}

// parseUnclean reads a store path as it may be in a derivation: with double slashes and
// dots. The result shares no memory with s.
func (d StoreDir) parseUnclean(s string) (StorePath, error) {
	return d.Parse(path.Clean(strings.Clone(s)))
}

func (p *drvParser) expect(token string) {
	if p.err != nil {
		return
	}
	if !strings.HasPrefix(p.text[p.pos:], token) {
		p.err = fmt.Errorf("expected %q", token)
		return
	}
	p.pos += len(token)
}

// list calls item for each element of a bracketed list. Nix skips a comma before an
// element and does not miss it.
func (p *drvParser) list(item func()) {
	p.expect("[")
	for p.err == nil {
		switch rest := p.text[p.pos:]; {
		case strings.HasPrefix(rest, "]"):
			p.pos++
			return
		case strings.HasPrefix(rest, ","):
			p.pos++
		}
		if p.items++; p.items > maxDerivationItems {
			p.err = fmt.Errorf("it has more than %d items", maxDerivationItems)
			return
		}
		item()
	}
}

// str reads a quoted string with the escapes \n \r \t and \ before anything else.
func (p *drvParser) str() string {
	p.expect(`"`)
	if p.err != nil {
		return ""
	}
	start, escaped := p.pos, false
	for ; p.pos < len(p.text); p.pos++ {
		switch p.text[p.pos] {
		case '"':
			s := p.text[start:p.pos]
			p.pos++
			if escaped {
				s = unescape(s)
			}
			return s
		case '\\':
			escaped = true
			p.pos++
		}
	}
	p.err = errors.New("string has no end")
	return ""
}

func unescape(s string) string {
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '\\' {
			i++
			switch c = s[i]; c {
			case 'n':
				c = '\n'
			case 'r':
				c = '\r'
			case 't':
				c = '\t'
			}
		}
		b.WriteByte(c)
	}
	return b.String()
}

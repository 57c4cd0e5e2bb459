package nix

import (
	"fmt"
	"strings"
)

// A Derivation is what a store must know of a .drv file: where its outputs go and
// what it is built from. The rest of the text is checked for its form and skipped.
type Derivation struct {
	Outputs []DerivationOutput
	Inputs  []StorePath // the derivations it depends on
	Sources []StorePath
}

// A DerivationOutput is one output of a derivation. Path is zero where it is only
// known after the build.
type DerivationOutput struct {
	Name string
	Path StorePath
}

// ParseDerivation reads the text of a .drv file (the ATerm form
// Derive([outputs],[inputs],[sources],system,builder,[args],[env])).
func (d StoreDir) ParseDerivation(text []byte) (*Derivation, error) {
	p := &drvParser{text: string(text), dir: d}
	drv := p.derivation()
	if p.err != nil {
		return nil, fmt.Errorf("derivation text at byte %d: %w", p.pos, p.err)
	}
	return drv, nil
}

// drvParser keeps its first error and does nothing after it.
type drvParser struct {
	text string
	pos  int
	dir  StoreDir
	err  error
}

func (p *drvParser) derivation() *Derivation {
	drv := new(Derivation)
	p.expect("Derive(")
	p.list(func() { drv.Outputs = append(drv.Outputs, p.output()) })
	p.expect(",")
	p.list(func() {
		p.expect("(")
		drv.Inputs = append(drv.Inputs, p.path())
		p.expect(",")
		p.list(func() { p.str() })
		p.expect(")")
	})
	p.expect(",")
	p.list(func() { drv.Sources = append(drv.Sources, p.path()) })
	p.expect(",")
	p.str() // system
	p.expect(",")
	p.str() // builder
	p.expect(",")
	p.list(func() { p.str() })
	p.expect(",")
	p.list(func() {
		p.expect("(")
		p.str()
		p.expect(",")
		p.str()
		p.expect(")")
	})
	p.expect(")")
	if p.err == nil && p.pos != len(p.text) {
		p.err = fmt.Errorf("text follows the derivation")
	}
	return drv
}

func (p *drvParser) output() (out DerivationOutput) {
	p.expect("(")
	out.Name = p.str()
	p.expect(",")
	if path := p.str(); p.err == nil && path != "" {
		out.Path, p.err = p.dir.Parse(path)
	}
	p.expect(",")
	p.str() // hash algorithm
	p.expect(",")
	p.str() // hash
	p.expect(")")
	return out
}

func (p *drvParser) path() (sp StorePath) {
	if s := p.str(); p.err == nil {
		sp, p.err = p.dir.Parse(s)
	}
	return sp
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

// list calls item for each element of a bracketed, comma-separated list.
func (p *drvParser) list(item func()) {
	p.expect("[")
	if p.err == nil && strings.HasPrefix(p.text[p.pos:], "]") {
		p.pos++
		return
	}
	for p.err == nil {
		item()
		if p.err == nil && strings.HasPrefix(p.text[p.pos:], ",") {
			p.pos++
			continue
		}
		p.expect("]")
		return
	}
}

// str reads a quoted string with the escapes \n \r \t and \ before anything else.
func (p *drvParser) str() string {
	p.expect(`"`)
	if p.err != nil {
		return ""
	}
	var b strings.Builder
	for p.pos < len(p.text) {
		c := p.text[p.pos]
		p.pos++
		switch {
		case c == '"':
			return b.String()
		case c != '\\':
			b.WriteByte(c)
		case p.pos < len(p.text):
			b.WriteByte(unescape(p.text[p.pos]))
			p.pos++
		}
	}
	p.err = fmt.Errorf("string has no end")
	return ""
}

func unescape(c byte) byte {
	switch c {
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	}
	return c
}

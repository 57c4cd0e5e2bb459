// Package substitute is about binary caches: reading them, making them, serving
// them. A cache is a directory of files, wherever that lies, in Nix's format.
package substitute

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// MaxNARInfo bounds a narinfo in bytes; those of real caches have a few thousand.
const MaxNARInfo = 4 << 20

// A NARInfo says where in a cache the NAR of a store path lies, and what it holds.
// CACHE.md describes its text.
type NARInfo struct {
	nix.PathInfo
	URL         string      // of the compressed NAR, relative to the cache
	Compression Compression // never empty
	FileHash    nix.Hash    // of the compressed NAR; zero if not known
	FileSize    int64       // of the compressed NAR in bytes; zero if not known
}

// Compression names how a cache compresses a NAR, in the words of a narinfo.
type Compression string

// Compressions that can be read. None, XZ and Zstd are written, too.
const (
	None   Compression = "none"
	XZ     Compression = "xz"
	Bzip2  Compression = "bzip2"
	Zstd   Compression = "zstd"
	Gzip   Compression = "gzip"
	Brotli Compression = "br"
	LZMA   Compression = "lzma"
	Lzip   Compression = "lzip"
	LZ4    Compression = "lz4"
)

// NARInfoName is the name of p's narinfo in a cache.
func NARInfoName(p nix.StorePath) string { return p.HashPart() + ".narinfo" }

// listingName is the name of p's listing in a cache.
func listingName(p nix.StorePath) string { return p.HashPart() + ".ls" }

// ParseNARInfo reads a narinfo of a cache for dir. Keys that are not known are
// passed over, as Nix does; what is known must be right and come once.
func ParseNARInfo(dir nix.StoreDir, text []byte) (*NARInfo, error) {
	if len(text) > MaxNARInfo {
		return nil, fmt.Errorf("narinfo is longer than %d bytes", MaxNARInfo)
	}
	if !strings.HasSuffix(string(text), "\n") {
		return nil, errors.New("narinfo does not end with a line: it is cut off, or no narinfo")
	}
	n := &NARInfo{Compression: Bzip2} // Nix's default
	p := narInfoParser{dir: dir, info: n, seen: make(map[string]bool)}
	for number, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		if err := p.line(line); err != nil {
			return nil, fmt.Errorf("narinfo line %d: %w", number+1, err)
		}
	}
	return n, p.complete()
}

type narInfoParser struct {
	dir  nix.StoreDir
	info *NARInfo
	seen map[string]bool
}

// line takes "Key: value"; an empty value may have lost its space.
func (p *narInfoParser) line(line string) error {
	key, value, ok := strings.Cut(line, ":")
	if !ok || key == "" || value != "" && value[0] != ' ' {
		return fmt.Errorf("%.100q is not in the form Key: value", line)
	}
	value = strings.TrimPrefix(value, " ")
	if p.seen[key] && key != "Sig" && isNARInfoKey(key) {
		return fmt.Errorf("%s comes twice", key)
	}
	p.seen[key] = true
	if err := p.field(key, value); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

func isNARInfoKey(key string) bool {
	switch key {
	case "StorePath", "URL", "Compression", "FileHash", "FileSize", "NarHash", "NarSize", "References", "Deriver", "CA":
		return true
	}
	return false
}

func (p *narInfoParser) field(key, value string) (err error) {
	n := p.info
	switch key {
	case "StorePath":
		n.Path, err = p.dir.Parse(value)
	case "URL":
		n.URL = value
	case "Compression":
		if value != "" {
			n.Compression = Compression(value)
		}
	case "FileHash":
		n.FileHash, err = nix.ParseHash(value)
	case "FileSize":
		n.FileSize, err = parseSize(value)
	case "NarHash":
		n.NARHash, err = parseNARHash(value)
	case "NarSize":
		n.NARSize, err = parseSize(value)
	case "References":
		n.References, err = p.references(value)
	case "Deriver":
		if value != "" && value != "unknown-deriver" {
			n.Deriver, err = p.dir.ParseBase(value)
		}
	case "Sig":
		n.Signatures = nix.AppendSignature(n.Signatures, value)
	case "CA":
		n.CA = value
	}
	return err
}

func parseNARHash(s string) (nix.Hash, error) {
	h, err := nix.ParseHash(s)
	if err == nil && h.Algorithm() != nix.SHA256 {
		err = fmt.Errorf("%s is not a sha256 hash", s)
	}
	return h, err
}

func parseSize(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%.40q is not a size", s)
	}
	return n, nil
}

func (p *narInfoParser) references(value string) ([]nix.StorePath, error) {
	words := strings.Fields(value)
	refs := make([]nix.StorePath, len(words))
	for i, word := range words {
		var err error
		if refs[i], err = p.dir.ParseBase(word); err != nil {
			return nil, err
		}
	}
	return refs, nil
}

// complete checks that what a reader needs is there.
func (p *narInfoParser) complete() error {
	n := p.info
	for _, key := range []string{"StorePath", "URL", "NarHash", "NarSize"} {
		if !p.seen[key] {
			return fmt.Errorf("narinfo has no %s", key)
		}
	}
	if n.NARSize == 0 || n.URL == "" {
		return fmt.Errorf("narinfo of %s: URL and NarSize may not be empty", n.Path)
	}
	n.SortReferences()
	return nil
}

// Text returns n as a narinfo, its keys in the order in which Nix writes them.
func (n *NARInfo) Text() string {
	var b strings.Builder
	line := func(key, value string) { b.WriteString(key + ": " + value + "\n") }
	line("StorePath", n.Path.String())
	line("URL", n.URL)
	line("Compression", string(n.Compression))
	if !n.FileHash.IsZero() {
		line("FileHash", n.FileHash.String())
	}
	if n.FileSize > 0 {
		line("FileSize", strconv.FormatInt(n.FileSize, 10))
	}
	line("NarHash", n.NARHash.String())
	line("NarSize", strconv.FormatInt(n.NARSize, 10))
	names := make([]string, len(n.References))
	for i, ref := range n.References {
		names[i] = ref.Base()
	}
	line("References", strings.Join(names, " "))
	if !n.Deriver.IsZero() {
		line("Deriver", n.Deriver.Base())
	}
	for _, sig := range n.Signatures {
		line("Sig", sig)
	}
	if n.CA != "" {
		line("CA", n.CA)
	}
	return b.String()
}

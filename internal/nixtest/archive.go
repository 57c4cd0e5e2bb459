package nixtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// checkArchive returns an error unless b is exactly one NAR. It is written apart
// from package nar, so that each can be held against the other.
func checkArchive(b []byte) error {
	c := &archiveChecker{r: wire.NewReader(bytes.NewReader(b)), limit: len(b)}
	c.expect("nix-archive-1")
	c.node()
	if c.r.Err() != nil {
		return fmt.Errorf("%w: %w", nix.ErrDamaged, c.r.Err())
	}
	if _, err := c.r.Raw().ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: more follows the archive", nix.ErrDamaged)
	}
	return nil
}

// An archiveChecker stops at its reader's first error.
type archiveChecker struct {
	r     *wire.Reader
	limit int
}

func (c *archiveChecker) word() string { return c.r.String(c.limit) }

func (c *archiveChecker) expect(words ...string) {
	for _, want := range words {
		if got := c.word(); got != want {
			c.r.Fail(fmt.Errorf("archive has %q where %q belongs", got, want))
		}
	}
}

func (c *archiveChecker) node() {
	c.expect("(", "type")
	switch kind := c.word(); kind {
	case "regular":
		tag := c.word()
		if tag == "executable" {
			c.expect("")
			tag = c.word()
		}
		if tag != "contents" {
			c.r.Fail(fmt.Errorf("archive has a file without contents"))
		}
		c.word()
		c.expect(")")
	case "symlink":
		c.expect("target")
		c.word()
		c.expect(")")
	case "directory":
		c.entries()
	default:
		c.r.Fail(fmt.Errorf("archive has a node of type %q", kind))
	}
}

// entries checks a directory up to its closing parenthesis.
func (c *archiveChecker) entries() {
	last := ""
	for c.r.Err() == nil {
		tag := c.word()
		if tag == ")" {
			return
		}
		if tag != "entry" {
			c.r.Fail(fmt.Errorf("archive has %q in a directory", tag))
		}
		c.expect("(", "name")
		name := c.word()
		if name <= last {
			c.r.Fail(fmt.Errorf("archive has the name %q after %q", name, last))
		}
		last = name
		c.expect("node")
		c.node()
		c.expect(")")
	}
}

// archiveFile returns the content of an archive of a plain file.
func archiveFile(b []byte) (string, error) {
	c := &archiveChecker{r: wire.NewReader(bytes.NewReader(b)), limit: len(b)}
	c.expect("nix-archive-1", "(", "type", "regular", "contents")
	return c.word(), c.r.Err()
}

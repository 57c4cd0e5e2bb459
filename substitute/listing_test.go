package substitute_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/substitute"
)

// TestListingOfAnyBytes wants valid JSON in which no two files have one name.
func TestListingOfAnyBytes(t *testing.T) {
	entries := map[string]nixtest.Node{"link": {Target: "to\xff"}}
	for _, name := range []string{"caf\xe8", "caf\xe9", "caf\u00e9", "caf\ufffd", "\"\\\n"} {
		entries[name] = nixtest.Node{Content: name}
	}
	var b bytes.Buffer
	if err := substitute.WriteListing(&b, bytes.NewReader(nixtest.Node{Entries: entries}.NAR())); err != nil {
		t.Fatal(err)
	}
	var listing struct {
		Root struct {
			Entries map[string]struct{ Target string }
		}
	}
	if err := json.Unmarshal(b.Bytes(), &listing); err != nil || !utf8.Valid(b.Bytes()) || strings.Count(b.String(), `\ufffd`) > 0 {
		t.Fatalf("%v: %q", err, b.String())
	}
	if got := listing.Root.Entries; len(got) != len(entries) || got["link"].Target != `to\xff` {
		t.Errorf("%q", got)
	}
}

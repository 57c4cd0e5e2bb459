package remote

import (
	"errors"
	"fmt"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// largeInfo takes about 2 MiB, of which most is shared with others.
func largeInfo(t *testing.T, n int) *nix.PathInfo {
	path, err := nixtest.Dir.ParseBase(fmt.Sprintf("%032d-large", n))
	if err != nil {
		t.Fatal(err)
	}
	info := &nix.PathInfo{Path: path, References: make([]nix.StorePath, 30_000)}
	for i := range info.References {
		info.References[i] = path
	}
	return info
}

// TestBasesAreBounded offers bases until there are too many. One that is offered again
// counts once.
func TestBasesAreBounded(t *testing.T) {
	var b serverBases
	b.init()
	offered := 0
	for n := range 100 {
		for range 2 {
			if b.add(largeInfo(t, n)) {
				offered++
			}
		}
	}
	if size := largeInfo(t, 0).MemorySize(); offered/2*size > maxBases || (offered/2+1)*size <= maxBases {
		t.Errorf("%d bases of %d bytes are offered", offered/2, size)
	}
}

// TestInboxesAreBounded has every channel at work with a large path info.
func TestInboxesAreBounded(t *testing.T) {
	session := newInboxes()
	working := 0
	for n := range 100 {
		in := session.open()
		i := item{info: largeInfo(t, n)}
		if err := in.put(i); err != nil {
			var format *wire.FormatError
			if !errors.As(err, &format) {
				t.Fatal(err)
			}
			break
		}
		if _, err := in.next(); err != nil {
			t.Fatal(err)
		}
		working += i.weight()
		defer in.close(errClosed)
	}
	if working > infosBytes || session.infos != working || session.held != 0 {
		t.Errorf("%d bytes are at work, of which %d are counted, and %d wait", working, session.infos, session.held)
	}
}

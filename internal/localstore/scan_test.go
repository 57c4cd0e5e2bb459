package localstore_test

import (
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/localstore"
)

// TestScanAcrossWrites cuts a text at every pair of places.
func TestScanAcrossWrites(t *testing.T) {
	first, second := strings.Repeat("0", 31)+"1", strings.Repeat("abcd", 8)
	text := []byte("a" + first + "/e" + second + second[:31])
	for i := range text {
		for j := i; j < len(text); j++ {
			found := localstore.ScanFor([]string{first, second}, text[:i], text[i:j], text[j:])
			if len(found) != 2 {
				t.Fatalf("cut at %d and %d: found %v", i, j, found)
			}
		}
	}
	var bytewise [][]byte
	for i := range text {
		bytewise = append(bytewise, text[i:i+1])
	}
	if found := localstore.ScanFor([]string{first, second}, bytewise...); len(found) != 2 {
		t.Errorf("byte by byte: found %v", found)
	}
	if found := localstore.ScanFor([]string{first}, []byte(first[:31]), []byte("e1")); len(found) != 0 {
		t.Errorf("found %v", found)
	}
}

func FuzzScan(f *testing.F) {
	part := strings.Repeat("abcd", 8)
	f.Add([]byte("x"+part), uint(5))
	f.Add([]byte(part[1:]+part), uint(40))
	f.Fuzz(func(t *testing.T, text []byte, cut uint) {
		i := int(cut % uint(len(text)+1))
		found := localstore.ScanFor([]string{part}, text[:i], text[i:])
		if found[part] != strings.Contains(string(text), part) {
			t.Errorf("found %v", found)
		}
	})
}

package substitute_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/substitute"
)

// goodNARInfo has every key.
const goodNARInfo = `StorePath: /nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-hello-2.12.1
URL: nar/1nhgq6wcggx0plpy4991h3ginj6hipsdslv4fd4zml1n707j26yq.nar.xz
Compression: xz
FileHash: sha256:1nhgq6wcggx0plpy4991h3ginj6hipsdslv4fd4zml1n707j26yq
FileSize: 50088
NarHash: sha256:0yzhigwjl6bws649vcs2asa4lbs8hg93hyix187gc7s7a74w5h80
NarSize: 226488
References: 3n58xw4373jp0ljirf06d8077j15pc4j-glibc-2.37-8 s66mzxpvicwk07gjbjfw9izjfa797vsw-hello-2.12.1
Deriver: ib3sh3pcz10wsmavxvkdbayhqivbghlq-hello-2.12.1.drv
Sig: cache.nixos.org-1:8ijECciSFzWHwwGVOIVYdp2fOIOJAfmzGHPQVwpktfTQJF6kMPPDre7UtFw3o+VqenC5P8RikKOAAfN7CvPEAg==
`

func TestNARInfo(t *testing.T) {
	info, err := substitute.ParseNARInfo(nix.DefaultStoreDir, []byte(goodNARInfo))
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Text(); got != goodNARInfo {
		t.Errorf("written again: %s", cmp.Diff(goodNARInfo, got))
	}
	if info.FileSize != 50088 || info.NARSize != 226488 || len(info.References) != 2 || info.Compression != substitute.XZ {
		t.Errorf("got %+v", info)
	}
}

// TestNARInfoSignatures reads more signatures than a path may have, and malformed ones.
func TestNARInfoSignatures(t *testing.T) {
	text := strings.Replace(goodNARInfo, "Sig: ", "Sig: evil-1:AAAA\nSig: \nSig: ", 1)
	for i := range 3000 {
		text += "Sig: " + nixtest.Signature(fmt.Sprintf("evil-%d", i)) + "\n"
	}
	info, err := substitute.ParseNARInfo(nix.DefaultStoreDir, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Signatures; len(got) != nix.MaxSignatures || !strings.HasPrefix(got[0], "cache.nixos.org-1:") {
		t.Errorf("%d signatures, the first is %q", len(got), got[0])
	}
}

func TestParseNARInfoRejects(t *testing.T) {
	cases := []struct{ name, old, new, want string }{
		{"no path", "StorePath: /nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-hello-2.12.1\n", "", "no StorePath"},
		{"other directory", "/nix/store/s66", "/gnu/store/s66", "StorePath"},
		{"no hash", "NarHash", "Narhash", "no NarHash"},
		{"short hash", "0yzhigwjl6bws", "0y", "NarHash"},
		{"size zero", "NarSize: 226488", "NarSize: 0", "NarSize"},
		{"negative size", "NarSize: 226488", "NarSize: -1", "not a size"},
		{"reference outside", "3n58xw4373jp0ljirf06d8077j15pc4j-glibc-2.37-8", "../etc", "References"},
		{"twice", "FileSize: 50088", "FileSize: 50088\nFileSize: 50088", "twice"},
		{"no line", "FileSize: 50088", "FileSize 50088", "Key: value"},
		{"cut", "+VqenC5P8RikKOAAfN7CvPEAg==\n", "", "cut off"},
		{"no URL", "URL: nar/1nhgq6wcggx0plpy4991h3ginj6hipsdslv4fd4zml1n707j26yq.nar.xz", "URL: ", "URL"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(goodNARInfo, c.old, c.new, 1)
			if text == goodNARInfo {
				t.Fatal("nothing replaced")
			}
			_, err := substitute.ParseNARInfo(nix.DefaultStoreDir, []byte(text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func FuzzParseNARInfo(f *testing.F) {
	f.Add([]byte(goodNARInfo))
	f.Fuzz(func(t *testing.T, text []byte) {
		info, err := substitute.ParseNARInfo(nix.DefaultStoreDir, text)
		if err != nil {
			return
		}
		again, err := substitute.ParseNARInfo(nix.DefaultStoreDir, []byte(info.Text()))
		if err != nil {
			t.Fatalf("written again: %v\n%s", err, info.Text())
		}
		if got, want := again.Text(), info.Text(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

func TestCacheInfo(t *testing.T) {
	want := substitute.CacheInfo{StoreDir: nix.DefaultStoreDir, WantMassQuery: true, Priority: 30}
	got, err := substitute.ParseCacheInfo(nix.DefaultStoreDir, []byte(want.Text()))
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for _, text := range []string{"", "WantMassQuery: 1\n", "Priority: 3\n"} {
		if got, err := substitute.ParseCacheInfo(nix.DefaultStoreDir, []byte(text)); err != nil || got.StoreDir != nix.DefaultStoreDir {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"StoreDir: /gnu/store\n", "StoreDir:\n", "<html>\n", "<a href='http://x'>\n", "StoreDir: /nix/store\nPriority: high\n"} {
		if _, err := substitute.ParseCacheInfo(nix.DefaultStoreDir, []byte(text)); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

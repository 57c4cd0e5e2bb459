package cli

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// trustOnly has nix.conf trust one key, and returns it.
func trustOnly(t *testing.T) nix.SecretKey {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"HOME", "NIX_CONF_DIR", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS"} {
		t.Setenv(name, dir)
	}
	t.Setenv("NIX_USER_CONF_FILES", "")
	t.Setenv("NIX_CONFIG", "")
	conf := "trusted-public-keys = test-1:" + base64.StdEncoding.EncodeToString(public) + "\n"
	if err := os.WriteFile(filepath.Join(dir, "nix.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := nix.ParseSecretKey("test-1:" + base64.StdEncoding.EncodeToString(private))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t *testing.T, key nix.SecretKey, info *nix.PathInfo) {
	t.Helper()
	signature, err := key.Sign(info)
	if err != nil {
		t.Fatal(err)
	}
	info.Signatures = append(info.Signatures, signature)
}

// inputAddressed are paths that only a signature vouches for, every other with a deriver.
func inputAddressed(t *testing.T, n int) []*nix.PathInfo {
	t.Helper()
	_, infos := somePaths(t, make([]int64, n)...)
	for i, info := range infos {
		info.NARSize, info.NARHash = 1000, nixtest.Chain(1)[0].Info.NARHash
		if i%2 == 0 {
			drv, err := nix.DefaultStoreDir.ParseBase(fmt.Sprintf("%032d-x.drv", i))
			if err != nil {
				t.Fatal(err)
			}
			info.Deriver = drv
		}
	}
	return infos
}

// TestCheckTrust has one path without a signature among others, at each place.
func TestCheckTrust(t *testing.T) {
	key := trustOnly(t)
	run := &copyRun{program: new(program), copyRequest: &copyRequest{}}
	for unsigned := range 5 {
		infos := inputAddressed(t, 5)
		for i, info := range infos {
			if i != unsigned {
				sign(t, key, info)
			}
		}
		err := run.checkTrust(infos)
		if !errors.Is(err, nix.ErrNotTrusted) || !strings.Contains(err.Error(), infos[unsigned].Path.String()) {
			t.Errorf("path %d is not signed: error %v, want one that names %s", unsigned, err, infos[unsigned].Path)
		}
		sign(t, key, infos[unsigned])
		if err := run.checkTrust(infos); err != nil {
			t.Errorf("all are signed: %v", err)
		}
	}
}

// TestAcceptance is about the check of serve --write and of others who take paths in.
func TestAcceptance(t *testing.T) {
	key := trustOnly(t)
	check, err := new(program).acceptance()
	if err != nil {
		t.Fatal(err)
	}
	for i, info := range inputAddressed(t, 2) {
		if err := check(info); !errors.Is(err, nix.ErrNotTrusted) {
			t.Errorf("path %d without a signature: error %v, want %v", i, err, nix.ErrNotTrusted)
		}
		sign(t, key, info)
		if err := check(info); err != nil {
			t.Errorf("path %d with a signature: %v", i, err)
		}
	}
}

// TestCheckRoom has paths that take half of what is free, and half as much again as there
// is.
func TestCheckRoom(t *testing.T) {
	store, err := localstore.OpenOrCreate(t.Context(), localstore.Under(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	free, _, err := store.FreeSpace()
	if err != nil || store.SharesSpace() {
		harness.Unavailable(t, errors.New("this file system compresses: what is free is not known"))
	}
	run := &copyRun{program: &program{}, copyRequest: &copyRequest{pull: true}}
	for _, c := range []struct {
		size uint64
		want error
	}{{free / 2, nil}, {free + free/2, nix.ErrNoSpace}} {
		_, infos := somePaths(t, int64(min(c.size, math.MaxInt64)))
		err := run.checkRoom(t.Context(), &closure.Plan{Send: infos}, ends{local: &localEnd{store: store}})
		if !errors.Is(err, c.want) {
			t.Errorf("%d bytes for %d: error %v, want %v", c.size, free, err, c.want)
		}
	}
}

func TestSpaceFor(t *testing.T) {
	for size, want := range map[int64]int64{1: 2 * fileBlock, fileBlock: 2 * fileBlock, fileBlock + 1: 3 * fileBlock} {
		_, infos := somePaths(t, size, size)
		if got := spaceFor(infos); got != 2*want {
			t.Errorf("spaceFor two of %d bytes = %d, want %d", size, got, 2*want)
		}
	}
}

package localstore_test

import (
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/localstore"
)

func TestChoose(t *testing.T) {
	root := localstore.Facts{Home: "/home/u", HaveState: true, HaveDatabase: true, HaveNix: true, StateWritable: true, StoreWritable: true}
	rootBesideDaemon, user, userBesideDaemon, readOnlyMount := root, root, root, root
	rootBesideDaemon.HaveSocket = true
	rootBesideDaemon.Socket = "/d/socket"
	user.StateWritable, user.StoreWritable = false, false
	userBesideDaemon.StateWritable, userBesideDaemon.StoreWritable, userBesideDaemon.HaveSocket = false, false, true
	userBesideDaemon.Socket = "/d/socket"
	readOnlyMount.StoreWritable = false
	without := localstore.Facts{Home: "/home/u"}
	userBeforeNix, userBeforeDatabase := without, without
	userBeforeNix.HaveNix = true
	userBeforeDatabase.HaveNix, userBeforeDatabase.HaveState = true, true
	rootBeforeNix := userBeforeNix
	rootBeforeNix.StateWritable, rootBeforeNix.StoreWritable = true, true
	withoutProgram := userBesideDaemon
	withoutProgram.HaveNix = false
	cases := []struct {
		name, uri, remote string
		storeDir          string // NIX_STORE_DIR
		facts             localstore.Facts
		dir               string
		throughNix        bool
		socket            string
		err               string
	}{
		{name: "root", facts: root, dir: "/nix/store"},
		{name: "root beside a daemon", facts: rootBesideDaemon, dir: "/nix/store", throughNix: true, socket: "/d/socket"},
		{name: "root beside a daemon, local", uri: "local", facts: rootBesideDaemon, dir: "/nix/store"},
		{name: "user beside a daemon", facts: userBesideDaemon, dir: "/nix/store", throughNix: true, socket: "/d/socket"},
		{name: "user without a daemon", facts: user, dir: "/nix/store", throughNix: true},
		{name: "read-only mount", facts: readOnlyMount, dir: "/nix/store", throughNix: true},
		{name: "no Nix", facts: without, dir: "/home/u/.local/share/copy-closure/nix/store"},
		{name: "root with Nix, without /nix", facts: rootBeforeNix, dir: "/nix/store"},
		{name: "user with Nix, without /nix", facts: userBeforeNix, dir: "/home/u/.local/share/nix/root/nix/store"},
		{name: "user with Nix, with an empty /nix", facts: userBeforeDatabase, dir: "/nix/store", throughNix: true},
		{name: "no Nix, local", uri: "local", facts: without, dir: "/nix/store"},
		{name: "daemon without nix-store", facts: withoutProgram, dir: "/nix/store", throughNix: true, socket: "/d/socket"},
		{name: "directory", uri: "/srv/x/", facts: root, dir: "/srv/x/nix/store"},
		{name: "root parameter", uri: "local?root=/srv/x", facts: root, dir: "/srv/x/nix/store"},
		{name: "real parameter", uri: "local?store=/a/store&real=/b/store&state=/b/var", facts: root, dir: "/b/store"},
		{name: "unknown parameter", uri: "local?rooot=/x", facts: root, err: "parameter rooot: unsupported"},
		{name: "directory with a parameter", uri: "/srv/x?require-sigs=false", facts: root, dir: "/srv/x/nix/store"},
		{name: "directory with another place", uri: "/srv/x?real=/b/store", facts: root, dir: "/b/store"},
		{name: "URL", uri: "local:///srv/x%20y?trusted=yes", facts: root, dir: "/srv/x y/nix/store"},
		{name: "URL without a path", uri: "local://?root=/srv/x+y&root=/srv/z", facts: root, dir: "/srv/x+y/nix/store"},
		{name: "auto with a root", uri: "auto?root=/srv/x", facts: rootBesideDaemon, dir: "/srv/x/nix/store"},
		{name: "question mark", uri: "local?root=/srv/x%3Fy", facts: root, err: "question mark"},
		{name: "relative root", uri: "local?root=srv", facts: root, err: "parameter root"},
		{name: "relative socket", uri: "unix://s", facts: root, err: "not an absolute path"},
		{name: "no boolean", uri: "local?require-sigs=maybe", facts: root, err: "parameter require-sigs"},
		{name: "require-sigs of a daemon", uri: "daemon?require-sigs=false", facts: root, err: "parameter require-sigs: unsupported"},
		{name: "daemon with connections", uri: "daemon?max-connections=7&trusted=true", facts: rootBesideDaemon, dir: "/nix/store", throughNix: true, socket: "/d/socket"},
		{name: "daemon of another state", uri: "daemon?state=/srv/var", facts: rootBesideDaemon, dir: "/nix/store", throughNix: true, socket: "/srv/var/daemon-socket/socket"},
		{name: "NIX_STORE_DIR", uri: "local", storeDir: "/s/", facts: root, dir: "/s"},
		{name: "NIX_STORE_DIR under a root", uri: "/srv/x", storeDir: "/s", facts: root, dir: "/srv/x/nix/store"},
		{name: "relative directory", uri: "local?real=b", facts: root, err: "not absolute"},
		{name: "daemon", uri: "daemon", facts: rootBesideDaemon, dir: "/nix/store", throughNix: true, socket: "/d/socket"},
		{name: "socket", uri: "unix:///s", facts: root, dir: "/nix/store", throughNix: true, socket: "/s"},
		{name: "default socket", uri: "unix://", facts: rootBesideDaemon, dir: "/nix/store", throughNix: true, socket: "/d/socket"},
		{name: "cache", uri: "https://cache.nixos.org", facts: root, err: "unsupported store"},
		{name: "NIX_REMOTE", remote: "local?root=/srv/y", facts: rootBesideDaemon, dir: "/srv/y/nix/store"},
		{name: "NIX_REMOTE daemon", remote: "daemon", facts: rootBesideDaemon, dir: "/nix/store", throughNix: true, socket: "/d/socket"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			env := map[string]string{"NIX_STORE_DIR": c.storeDir}
			c.facts.Default = c.remote
			c.facts.Getenv = func(key string) string { return env[key] }
			got, err := c.facts.Choose(c.uri)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want one with %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.Config.RealDir != c.dir || got.ThroughNix != c.throughNix || got.Socket != c.socket {
				t.Errorf("chose %s, through Nix %v, %q (%s); want %s, %v, %q",
					got.Config.RealDir, got.ThroughNix, got.Socket, got.Reason, c.dir, c.throughNix, c.socket)
			}
		})
	}
}

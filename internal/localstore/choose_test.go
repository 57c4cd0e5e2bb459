package localstore_test

import (
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/localstore"
)

func TestChoose(t *testing.T) {
	root := localstore.Facts{HaveDatabase: true, HaveNix: true, StateWritable: true, StoreWritable: true}
	rootBesideDaemon, user, userBesideDaemon, readOnlyMount := root, root, root, root
	rootBesideDaemon.HaveSocket = true
	rootBesideDaemon.Socket = "/d/socket"
	user.StateWritable, user.StoreWritable = false, false
	userBesideDaemon.StateWritable, userBesideDaemon.StoreWritable, userBesideDaemon.HaveSocket = false, false, true
	userBesideDaemon.Socket = "/d/socket"
	readOnlyMount.StoreWritable = false
	without := localstore.Facts{}
	withoutProgram := userBesideDaemon
	withoutProgram.HaveNix = false
	cases := []struct {
		name, uri, remote string
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
		{name: "no Nix, local", uri: "local", facts: without, dir: "/nix/store"},
		{name: "daemon without nix-store", facts: withoutProgram, dir: "/nix/store", throughNix: true, socket: "/d/socket"},
		{name: "directory", uri: "/srv/x/", facts: root, dir: "/srv/x/nix/store"},
		{name: "root parameter", uri: "local?root=/srv/x", facts: root, dir: "/srv/x/nix/store"},
		{name: "real parameter", uri: "local?store=/a/store&real=/b/store&state=/b/var", facts: root, dir: "/b/store"},
		{name: "unknown parameter", uri: "local?rooot=/x", facts: root, err: `"rooot"`},
		{name: "relative directory", uri: "local?real=b", facts: root, err: "not absolute"},
		{name: "daemon", uri: "daemon", facts: rootBesideDaemon, dir: "/nix/store", throughNix: true, socket: "/d/socket"},
		{name: "socket", uri: "unix:///s", facts: root, dir: "/nix/store", throughNix: true, socket: "/s"},
		{name: "default socket", uri: "unix://", facts: rootBesideDaemon, dir: "/nix/store", throughNix: true, socket: "/d/socket"},
		{name: "cache", uri: "https://cache.nixos.org", facts: root, err: "none that this end can be"},
		{name: "NIX_REMOTE", remote: "local?root=/srv/y", facts: rootBesideDaemon, dir: "/srv/y/nix/store"},
		{name: "NIX_REMOTE daemon", remote: "daemon", facts: rootBesideDaemon, dir: "/nix/store", throughNix: true, socket: "/d/socket"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			env := map[string]string{"HOME": "/home/u", "NIX_REMOTE": c.remote}
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

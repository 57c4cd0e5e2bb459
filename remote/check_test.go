package remote_test

import (
	"bytes"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/remote"
)

// TestEveryPathIsChecked has each protocol's server take paths of all kinds in with a check
// that refuses them.
func TestEveryPathIsChecked(t *testing.T) {
	plain := nixtest.Chain(1)[0]
	for _, change := range []func(*nix.PathInfo){
		func(*nix.PathInfo) {},
		func(i *nix.PathInfo) { i.CA = "" },
		func(i *nix.PathInfo) { i.Deriver, i.CA = nixtest.Text("x.drv", "").Info.Path, "" },
		func(i *nix.PathInfo) { i.Signatures = []string{"cache-1:" + "AAAA"} },
	} {
		info := *plain.Info
		change(&info)
		o := nixtest.Object{Info: &info, NAR: plain.NAR}
		for protocol, add := range map[string]func(*testing.T, *nixtest.Store, remote.ServerOptions){
			"serve": func(t *testing.T, s *nixtest.Store, options remote.ServerOptions) {
				c := startServer(t, s, options, 7)
				writeServerAdd(c.Writer, o.Info)
				c.Write(o.NAR)
				c.end()
			},
			"peer": func(t *testing.T, s *nixtest.Store, options remote.ServerOptions) {
				h := newPeerHost(t, s)
				h.options.Check = options.Check
				im, err := peerStore{s, t, h}.Import(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				im.Add(t.Context(), o.Info, bytes.NewReader(o.NAR), func(error) {})
				im.Close()
			},
			"daemon": func(t *testing.T, s *nixtest.Store, options remote.ServerOptions) {
				serveDaemonBytes(s, options, addBytes(o, func(*nix.PathInfo) {}, 0))
			},
		} {
			var checked []nix.StorePath
			s := nixtest.NewStore()
			add(t, s, remote.ServerOptions{Write: true, Check: func(info *nix.PathInfo) error {
				checked = append(checked, info.Path)
				return nix.ErrNotTrusted
			}})
			if len(checked) == 0 || len(s.All()) > 0 {
				t.Errorf("%s: deriver %s, content address %q: checked %v, valid %v", protocol, o.Info.Deriver, o.Info.CA, checked, s.All())
			}
		}
	}
}

package cli

import (
	"errors"
	"fmt"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/remote"
)

// beAtomic has this end make all paths valid together, or checks that the far end can.
// Nix's protocols have no word for it.
func (r *copyRun) beAtomic(plan *closure.Plan, e ends) error {
	paths := len(plan.Send) + len(plan.Fetch)
	if !r.atomic || paths == 0 {
		return nil
	}
	if r.pull {
		if e.local.writer == nil {
			return errors.New("--atomic: this store is written through Nix, which makes each path valid by itself; it takes a store that copy-closure may write itself, such as --store /DIR")
		}
		return e.local.writer.Atomic(paths)
	}
	if store, ok := e.far.protocolStore.(*remote.Store); !ok || !store.OffersAtomic() {
		return fmt.Errorf("--atomic: what answers on %s makes each path valid by itself; it takes copy-closure there, which may write the store itself", r.host.name)
	}
	return nil
}

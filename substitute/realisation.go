package substitute

import (
	"net/http"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// Realisations are files of this directory and extension, named by their outputs, up to
// Nix 2.34. Later ones look in build-trace-v2/, by derivation paths, which such a store
// does not keep.
const (
	realisationDir = "realisations/"
	realisationExt = ".doi"
)

// RealisationName is the file of an output's realisation.
func RealisationName(id nix.DrvOutput) string { return realisationDir + id.String() + realisationExt }

func parseRealisationName(name string) (nix.DrvOutput, bool) {
	base, isIn := strings.CutPrefix(name, realisationDir)
	text, isRealisation := strings.CutSuffix(base, realisationExt)
	if !isIn || !isRealisation {
		return nix.DrvOutput{}, false
	}
	id, err := nix.ParseDrvOutput(text)
	return id, err == nil
}

// realisation answers with what was built of an output. It is signed where its path is.
func (c *storeCache) realisation(res *response, r *http.Request, id nix.DrvOutput) error {
	known, err := c.store.Realisation(r.Context(), id)
	if err != nil {
		return err
	}
	info, err := c.store.PathInfoFromHashPart(r.Context(), known.Path.HashPart())
	if err != nil {
		return err
	}
	if c.options.Sign.vouches(info) {
		known.Sign(c.options.Sign.Keys)
	}
	return newText(known.Text()).answer(res, r, "application/json")
}

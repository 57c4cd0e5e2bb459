package substitute

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"
)

// strayNames are those of the files that a push writes before the narinfo, and that a
// deletion removes after it. Other files are not ours to judge.
var strayNames = regexp.MustCompile(`^(nar/[0-9a-df-np-sv-z]{52}\.nar(\.[a-z0-9]+)?|[0-9a-df-np-sv-z]{32}\.ls)$`)

// Strays returns the files that belong to no path, and have for so long that no push is
// at work on them any more: what a killed push or deletion has left.
func (v *Inventory) Strays(ctx context.Context) (map[string]File, error) {
	files, ok := v.cache.Files.(ListableFiles)
	if !ok {
		return nil, ErrNoListing
	}
	if len(v.Damaged) > 0 {
		return nil, fmt.Errorf("what belongs to no path cannot be told while a narinfo is damaged: %w", v.Damaged[0])
	}
	used := make(map[string]bool, 2*len(v.Infos))
	for path, n := range v.Infos {
		used[n.URL] = true
		used[listingName(path)] = true
	}
	strays := make(map[string]File)
	for _, prefix := range []string{"", "nar/"} {
		list, err := files.List(ctx, prefix)
		if err != nil {
			return nil, err
		}
		for name, file := range list {
			if !used[name] && strayNames.MatchString(name) && time.Since(file.Modified) > Leftover {
				strays[name] = file
			}
		}
	}
	return strays, nil
}

// deleteStrays returns the bytes of what it has deleted.
func (v *Inventory) deleteStrays(ctx context.Context, files WritableFiles) (freed int64, err error) {
	strays, err := v.Strays(ctx)
	if err != nil {
		return 0, err
	}
	for _, name := range slices.Sorted(maps.Keys(strays)) {
		if err := files.Remove(ctx, name); err != nil {
			return freed, err
		}
		freed += strays[name].Size
	}
	return freed, nil
}

package substitute

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// CacheInfoName is the name of the file that describes a cache.
const CacheInfoName = "nix-cache-info"

// CacheInfo describes a cache.
type CacheInfo struct {
	StoreDir      nix.StoreDir
	WantMassQuery bool // it may be asked about many paths
	Priority      int  // a lower number is asked first
}

// defaultPriority is that of a cache that does not say, as in Nix.
const defaultPriority = 0

// ParseCacheInfo reads nix-cache-info; keys that are not known are passed over. It is an
// error if the cache is for another store directory than dir; one that names none is for
// all. A page that a web server gives in place of a file is no cache.
func ParseCacheInfo(dir nix.StoreDir, text []byte) (CacheInfo, error) {
	info := CacheInfo{StoreDir: dir, Priority: defaultPriority}
	known := false // one of the keys
	for _, line := range strings.Split(string(text), "\n") {
		key, value, ok := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		known = known || ok && (key == "StoreDir" || key == "WantMassQuery" || key == "Priority")
		switch {
		case !ok:
		case key == "StoreDir":
			if value != string(dir) {
				return info, fmt.Errorf("it is a cache for %.100q, not for %s", value, dir)
			}
		case key == "WantMassQuery":
			info.WantMassQuery = value == "1"
		case key == "Priority":
			n, err := strconv.Atoi(value)
			if err != nil {
				return info, fmt.Errorf("the priority %.40q is not a number", value)
			}
			info.Priority = n
		}
	}
	if !known && len(text) > 0 {
		return info, fmt.Errorf("nothing in its %s makes sense: this is no binary cache", CacheInfoName)
	}
	return info, nil
}

// Text returns info as the file's contents.
func (info CacheInfo) Text() string {
	mass := "0"
	if info.WantMassQuery {
		mass = "1"
	}
	return fmt.Sprintf("StoreDir: %s\nWantMassQuery: %s\nPriority: %d\n", info.StoreDir, mass, info.Priority)
}

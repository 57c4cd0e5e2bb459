package harness

import (
	"os"
	"path/filepath"
	"strings"
)

// BarePath fills dir with links to the machine's programs, all but Nix's and
// our own, and returns it: as PATH it makes a machine that has neither.
func BarePath(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, bin := range []string{"/bin", "/usr/bin"} {
		entries, err := os.ReadDir(bin)
		if err != nil {
			return "", err
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "nix") || e.Name() == "copy-closure" {
				continue
			}
			err := os.Symlink(filepath.Join(bin, e.Name()), filepath.Join(dir, e.Name()))
			if err != nil && !os.IsExist(err) {
				return "", err
			}
		}
	}
	return dir, nil
}

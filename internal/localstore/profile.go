package localstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A Generation is one state of a profile.
type Generation struct {
	Number int
	Link   string // PROFILE-NUMBER-link
	Path   nix.StorePath
}

// SetProfile makes the valid path p the current generation of a profile and
// returns its number: a new one, unless p is the newest already. A profile is a
// link to one of its generations, which are roots.
func (s *Store) SetProfile(ctx context.Context, profile string, p nix.StorePath) (int, error) {
	profile, err := filepath.Abs(profile)
	if err != nil {
		return 0, err
	}
	number, err := s.setProfile(ctx, profile, p)
	if err != nil {
		return 0, fmt.Errorf("set profile %s to %s: %w", profile, p, err)
	}
	return number, s.outlastCollector(ctx)
}

func (s *Store) setProfile(ctx context.Context, profile string, p nix.StorePath) (number int, err error) {
	if err := s.prepareRoot(ctx, p); err != nil {
		return 0, err
	}
	if err := os.MkdirAll(filepath.Dir(profile), 0o755); err != nil {
		return 0, err
	}
	if st, err := os.Lstat(profile); err == nil && st.Mode()&fs.ModeSymlink == 0 {
		return 0, errors.New("it is no link, so no profile")
	}
	lock, err := waitFileLock(ctx, profile+".lock")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, lock.release()) }()
	generations, err := s.Generations(profile)
	if err != nil {
		return 0, err
	}
	newest := Generation{}
	if len(generations) > 0 {
		newest = generations[len(generations)-1]
	}
	if newest.Path != p {
		newest.Number++
		newest.Link = fmt.Sprintf("%s-%d-link", profile, newest.Number)
		if err := s.linkRoot(newest.Link, p); err != nil {
			return 0, err
		}
	}
	return newest.Number, replaceLink(profile, filepath.Base(newest.Link))
}

// Generations returns the generations of a profile, the oldest first. A profile
// that does not exist has none.
func (s *Store) Generations(profile string) ([]Generation, error) {
	profile, err := filepath.Abs(profile)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Dir(profile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var generations []Generation
	for _, entry := range entries {
		number, ok := generationNumber(entry.Name(), filepath.Base(profile))
		if !ok {
			continue
		}
		link := filepath.Join(filepath.Dir(profile), entry.Name())
		target, err := os.Readlink(link)
		if err != nil {
			return nil, err
		}
		// What points elsewhere has a number all the same.
		p, _, _ := s.config.StoreDir.Split(target)
		generations = append(generations, Generation{number, link, p})
	}
	slices.SortFunc(generations, func(a, b Generation) int { return cmp.Compare(a.Number, b.Number) })
	return generations, nil
}

// generationNumber reads a name of the form PROFILE-NUMBER-link.
func generationNumber(name, profile string) (int, bool) {
	middle, ok := strings.CutPrefix(name, profile+"-")
	if !ok {
		return 0, false
	}
	digits, ok := strings.CutSuffix(middle, "-link")
	if !ok {
		return 0, false
	}
	number, err := strconv.Atoi(digits)
	return number, err == nil && number > 0
}

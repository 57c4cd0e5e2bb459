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
	"time"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A Generation is one state of a profile.
type Generation struct {
	Number  int
	Link    string // PROFILE-NUMBER-link
	Path    nix.StorePath
	Made    time.Time
	Current bool // the profile leads to it
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
		return 0, fmt.Errorf("set profile %s to %s: %w", profile, p, nix.CheckNoSpace(err))
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
	lock, err := lockProfile(ctx, profile)
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

// SwitchGeneration makes the profile lead to the generation with that number. All of
// them stay roots.
func (s *Store) SwitchGeneration(ctx context.Context, profile string, number int) error {
	profile, err := filepath.Abs(profile)
	if err == nil {
		err = s.switchGeneration(ctx, profile, number)
	}
	if err != nil {
		return fmt.Errorf("switch profile %s to generation %d: %w", profile, number, err)
	}
	return nil
}

func (s *Store) switchGeneration(ctx context.Context, profile string, number int) (err error) {
	lock, err := lockProfile(ctx, profile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.release()) }()
	generations, err := s.Generations(profile)
	if err != nil {
		return err
	}
	for _, g := range generations {
		if g.Number == number {
			return replaceLink(profile, filepath.Base(g.Link))
		}
	}
	return errors.New("there is no such generation")
}

// lockProfile keeps other programs, Nix's too, from changing a profile meanwhile.
func lockProfile(ctx context.Context, profile string) (*fileLock, error) {
	if st, err := os.Lstat(profile); err == nil && st.Mode()&fs.ModeSymlink == 0 {
		return nil, errors.New("it is no link, so no profile")
	}
	return waitFileLock(ctx, profile+".lock")
}

// Generations returns the generations of a profile, the oldest first. A profile
// that does not exist has none.
func (s *Store) Generations(profile string) ([]Generation, error) {
	return Generations(s.config.StoreDir, profile)
}

// Generations returns those of a profile whose paths are in the store directory dir.
func Generations(dir nix.StoreDir, profile string) ([]Generation, error) {
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
	current, err := os.Readlink(profile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
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
		info, err := entry.Info()
		if err != nil {
			return nil, err
		}
		// What points elsewhere has a number all the same.
		p, _, _ := dir.Split(target)
		generations = append(generations, Generation{number, link, p, info.ModTime(), filepath.Base(current) == entry.Name()})
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

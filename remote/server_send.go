package remote

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
)

func (s *server) dumpStorePath(ctx context.Context) error {
	p := s.in.Path(s.dir)
	if err := s.request("send a path"); err != nil {
		return err
	}
	infos, err := s.backend.PathInfos(ctx, []nix.StorePath{p})
	if err == nil && len(infos) != 1 {
		err = nix.ErrNotValid
	}
	if err != nil {
		return fmt.Errorf("send %s: %w", p, err)
	}
	return s.sendNAR(ctx, infos[0])
}

// sendNAR sends a path's contents. Where they are not what info says the client
// never gets the end, and the error names the path.
func (s *server) sendNAR(ctx context.Context, info *nix.PathInfo) error {
	out := &serverNAR{w: s.out, info: info, hash: nar.NewHasher(sha256.New())}
	err := s.backend.WriteNAR(ctx, out, info.Path)
	sum := nix.SHA256Hash([sha256.Size]byte(out.hash.Sum()))
	if err == nil {
		err = out.finish(sum)
	}
	if err != nil {
		return fmt.Errorf("send %s: %w", info.Path, err)
	}
	return nil
}

// serverNARTail is the number of bytes held back until a NAR is known to be
// right. Any would do; these are the last token.
const serverNARTail = 16

// A serverNAR passes on a NAR while hashing it.
type serverNAR struct {
	w    io.Writer
	info *nix.PathInfo
	hash *nar.Hasher
	n    int64  // bytes taken
	tail []byte // bytes taken and not passed on
}

func (o *serverNAR) Write(p []byte) (int, error) {
	if int64(len(p)) > o.info.NARSize-o.n {
		return 0, &nix.SizeMismatchError{Got: o.n + int64(len(p)), Want: o.info.NARSize}
	}
	o.hash.Write(p)
	pass := min(int64(len(p)), max(0, o.info.NARSize-serverNARTail-o.n))
	o.n += int64(len(p))
	o.tail = append(o.tail, p[pass:]...)
	if n, err := o.w.Write(p[:pass]); err != nil {
		return n, err
	}
	return len(p), nil
}

// finish passes on the tail if the NAR has the right hash and size.
func (o *serverNAR) finish(sum nix.Hash) error {
	if err := o.info.CheckNAR(sum, o.n); err != nil {
		return err
	}
	_, err := o.w.Write(o.tail)
	return err
}

// exportPaths sends paths in the form of nix-store --export, each behind those of
// them that it refers to.
func (s *server) exportPaths(ctx context.Context) error {
	s.in.Bool() // whether to sign: no longer a thing
	paths := s.in.Paths(s.dir, serverMaxRoots)
	if err := s.request("export paths"); err != nil {
		return err
	}
	paths = sortedPaths(paths)
	infos, err := s.backend.PathInfos(ctx, paths)
	if err != nil {
		return fmt.Errorf("export paths: %w", err)
	}
	if len(infos) != len(paths) {
		return fmt.Errorf("export %s: %w", firstAbsent(paths, infos), nix.ErrNotValid)
	}
	sorted, err := referencesFirst(infos)
	if err != nil {
		return fmt.Errorf("export paths: %w", err)
	}
	for _, info := range sorted {
		s.out.Uint64(1)
		if err := s.sendNAR(ctx, info); err != nil {
			return err
		}
		s.out.Uint64(exportMagic)
		s.out.Path(info.Path)
		s.out.Paths(info.References)
		s.out.Path(info.Deriver)
		s.out.Uint64(0) // no signature in the old form
	}
	s.out.Uint64(0)
	return nil
}

func firstAbsent(paths []nix.StorePath, infos []*nix.PathInfo) nix.StorePath {
	there := make(map[nix.StorePath]bool, len(infos))
	for _, info := range infos {
		there[info.Path] = true
	}
	for _, p := range paths {
		if !there[p] {
			return p
		}
	}
	return nix.StorePath{}
}

// referencesFirst orders infos so that each comes after those of them that it
// refers to.
func referencesFirst(infos []*nix.PathInfo) ([]*nix.PathInfo, error) {
	waitsFor := make(map[nix.StorePath]int, len(infos))
	for _, info := range infos {
		waitsFor[info.Path] = 0
	}
	referrers := make(map[nix.StorePath][]*nix.PathInfo)
	var sorted []*nix.PathInfo
	for _, info := range infos {
		for _, ref := range info.References {
			if _, ok := waitsFor[ref]; ok && ref != info.Path {
				waitsFor[info.Path]++
				referrers[ref] = append(referrers[ref], info)
			}
		}
		if waitsFor[info.Path] == 0 {
			sorted = append(sorted, info)
		}
	}
	for i := 0; i < len(sorted); i++ {
		for _, referrer := range referrers[sorted[i].Path] {
			if waitsFor[referrer.Path]--; waitsFor[referrer.Path] == 0 {
				sorted = append(sorted, referrer)
			}
		}
	}
	if len(sorted) < len(infos) {
		return nil, fmt.Errorf("%d paths refer to each other in a cycle", len(infos)-len(sorted))
	}
	return sorted, nil
}

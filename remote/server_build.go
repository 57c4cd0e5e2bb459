package remote

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

const (
	serverMaxWanted     = 1 << 16  // paths and derivations in one request
	serverMaxDerivation = 16 << 20 // bytes of a .drv file's NAR
	serverMaxOutputs    = 1 << 12  // of a derivation
	serverMaxWords      = 1 << 16  // arguments or variables of a builder
)

// buildMiscFailure is the status of a build that failed for no other reason. Unlike
// the exit status 1 that Nix answers with, clients take it for a failure.
const buildMiscFailure = 9

const serverNoBuild = "this host has copy-closure only, which does not build"

// buildPaths is content where there is nothing to build.
func (s *server) buildPaths(ctx context.Context) error {
	if err := s.mayWrite("build paths"); err != nil {
		return err
	}
	wanted := s.in.Strings(serverMaxWanted, wire.MaxPath)
	s.readBuildOptions()
	if err := s.request("build paths"); err != nil {
		return err
	}
	for _, w := range wanted {
		missing, err := s.missingOf(ctx, w)
		if err != nil {
			return fmt.Errorf("build paths: %w", err)
		}
		if !missing.IsZero() {
			s.out.Uint64(buildMiscFailure)
			s.out.String(fmt.Sprintf("%s: %s would have to be built or fetched", serverNoBuild, missing))
			return nil
		}
	}
	s.out.Uint64(0)
	return nil
}

// missingOf returns a path that would have to be built or fetched for what is
// wanted: a path, or a derivation with a list of its outputs behind "!". It is
// zero where all is there.
func (s *server) missingOf(ctx context.Context, wanted string) (nix.StorePath, error) {
	text, outputs, named := strings.Cut(wanted, "!")
	p, err := s.dir.Parse(text)
	if err != nil {
		return nix.StorePath{}, &wire.FormatError{Msg: err.Error()}
	}
	infos, err := s.backend.PathInfos(ctx, []nix.StorePath{p})
	switch {
	case err != nil:
		return nix.StorePath{}, err
	case len(infos) == 0:
		return p, nil
	case !p.IsDerivation():
		return nix.StorePath{}, nil
	}
	drv, err := s.derivation(ctx, infos[0])
	if err != nil {
		return nix.StorePath{}, err
	}
	paths, known := wantedOutputs(drv, outputs, !named || outputs == "*")
	if !known {
		return p, nil
	}
	valid, err := s.backend.ValidPaths(ctx, paths)
	if err != nil || len(valid) == len(paths) {
		return nix.StorePath{}, err
	}
	there := make(map[nix.StorePath]bool, len(valid))
	for _, v := range valid {
		there[v] = true
	}
	for _, p := range paths {
		if !there[p] {
			return p, nil
		}
	}
	return nix.StorePath{}, nil
}

// wantedOutputs returns the paths of the outputs named in a comma-separated list,
// or of all. known is false where an output does not exist or has no path yet.
func wantedOutputs(drv *nix.Derivation, names string, all bool) (paths []nix.StorePath, known bool) {
	byName := make(map[string]nix.StorePath, len(drv.Outputs))
	for _, out := range drv.Outputs {
		byName[out.Name] = out.Path
		if all {
			paths = append(paths, out.Path)
		}
	}
	if !all {
		for name := range strings.SplitSeq(names, ",") {
			paths = append(paths, byName[name])
		}
	}
	paths = sortedPaths(paths)
	return paths, len(paths) > 0 && !paths[0].IsZero()
}

// validOutputs returns those outputs of a derivation that the store has.
func (s *server) validOutputs(ctx context.Context, info *nix.PathInfo) ([]nix.StorePath, error) {
	drv, err := s.derivation(ctx, info)
	if err != nil {
		return nil, err
	}
	var paths []nix.StorePath
	for _, out := range drv.Outputs {
		if !out.Path.IsZero() {
			paths = append(paths, out.Path)
		}
	}
	return s.backend.ValidPaths(ctx, paths)
}

// derivation reads a .drv file out of the store.
func (s *server) derivation(ctx context.Context, info *nix.PathInfo) (*nix.Derivation, error) {
	if info.NARSize > serverMaxDerivation {
		return nil, fmt.Errorf("%s: a NAR of %d bytes is too large for a derivation", info.Path, info.NARSize)
	}
	var archive bytes.Buffer
	if err := s.backend.WriteNAR(ctx, &archive, info.Path); err != nil {
		return nil, fmt.Errorf("%s: %w", info.Path, err)
	}
	text, err := narFile(&archive)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", info.Path, err)
	}
	drv, err := s.dir.ParseDerivation(info.Path, text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", info.Path, err)
	}
	return drv, nil
}

// narFile returns the content of a NAR that is nothing but a plain file.
func narFile(archive io.Reader) (string, error) {
	r := wire.NewReader(archive)
	for _, token := range []string{"nix-archive-1", "(", "type", "regular", "contents"} {
		if got := r.String(wire.MaxField); r.Err() == nil && got != token {
			return "", fmt.Errorf("it is not a plain file")
		}
	}
	text := r.String(serverMaxDerivation)
	return text, r.Err()
}

// buildDerivation refuses in band, so that a client with further machines to ask
// can do so.
func (s *server) buildDerivation() error {
	if err := s.mayWrite("build derivations"); err != nil {
		return err
	}
	p := s.in.Path(s.dir)
	s.skipBasicDerivation()
	s.readBuildOptions()
	if err := s.request("build a derivation"); err != nil {
		return err
	}
	s.out.Uint64(buildMiscFailure)
	s.out.String(fmt.Sprintf("%s: %s cannot be built", serverNoBuild, p))
	if s.since(3) {
		for range 4 { // times built, deterministic, start, stop
			s.out.Uint64(0)
		}
	}
	if s.since(6) {
		s.out.Uint64(0) // no outputs
	}
	return nil
}

func (s *server) skipBasicDerivation() {
	for range s.in.Count(serverMaxOutputs) {
		for range 4 { // name, path, hash algorithm, hash
			s.in.String(wire.MaxPath)
		}
	}
	s.in.Paths(s.dir, wire.MaxReferences)
	s.in.String(wire.MaxField) // platform
	s.in.String(wire.MaxPath)  // builder
	s.skipStrings(s.in.Count(serverMaxWords))
	s.skipStrings(2 * s.in.Count(serverMaxWords)) // environment
}

// skipStrings reads n strings without keeping them.
func (s *server) skipStrings(n int) {
	for range n {
		if s.in.String(serverMaxDerivation); s.in.Err() != nil {
			return
		}
	}
}

// readBuildOptions reads the fields that this version of the protocol has.
func (s *server) readBuildOptions() {
	s.in.Uint64() // silent seconds
	s.in.Uint64() // seconds
	if s.since(2) {
		s.in.Uint64() // bytes of log
	}
	if s.since(3) {
		s.in.Uint64() // repetitions
		s.in.Bool()   // enforce determinism
	}
	if s.since(7) {
		s.in.Bool() // keep what failed
	}
}

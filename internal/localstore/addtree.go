package localstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"zombiezen.com/go/sqlite"

	"github.com/copy-closure/copy-closure/internal/nar"
	"github.com/copy-closure/copy-closure/internal/nix"
)

// AddTree adds the file, directory or symbolic link at path to the store under a
// name, that of path if it is empty, with its content address. Valid paths whose
// hash parts appear in it become its references. Without any it gets the path that
// nix-store --add gives it.
func (s *Store) AddTree(ctx context.Context, name, path string) (*nix.PathInfo, error) {
	info, err := s.addTree(ctx, name, path)
	if err != nil {
		return nil, fmt.Errorf("add %s: %w", path, err)
	}
	return info, nil
}

func (s *Store) addTree(ctx context.Context, name, path string) (*nix.PathInfo, error) {
	if err := s.mayWrite(); err != nil {
		return nil, err
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if name == "" {
		name = filepath.Base(path)
	}
	info, err := s.describe(ctx, name, path)
	if err != nil {
		return nil, err
	}
	if err := s.importTree(ctx, info, path); err != nil {
		return nil, err
	}
	return s.PathInfo(ctx, info.Path)
}

// describe reads a tree and returns the info that it would have in the store.
func (s *Store) describe(ctx context.Context, name, path string) (*nix.PathInfo, error) {
	parts, err := s.hashParts(ctx)
	if err != nil {
		return nil, err
	}
	return describe(ctx, s.config.StoreDir, name, path, parts, func(found map[hashPart]struct{}) ([]nix.StorePath, error) {
		refs, err := s.pathsOfParts(ctx, found)
		if err != nil {
			return nil, err
		}
		// What is referred to must not be deleted before we are registered.
		return refs, s.Hold(ctx, refs)
	})
}

// DescribeTree reads the tree at path and returns the info that it has in a store whose
// valid paths are known. Those whose hash parts appear in it become its references.
func DescribeTree(ctx context.Context, dir nix.StoreDir, name, path string, valid []nix.StorePath) (*nix.PathInfo, error) {
	parts := make(map[hashPart]struct{}, len(valid))
	for _, p := range valid {
		parts[partOf(p)] = struct{}{}
	}
	return describe(ctx, dir, name, path, parts, func(found map[hashPart]struct{}) (refs []nix.StorePath, err error) {
		for _, p := range valid {
			if _, ok := found[partOf(p)]; ok {
				refs = append(refs, p)
			}
		}
		slices.SortFunc(refs, nix.StorePath.Compare)
		return refs, nil
	})
}

func partOf(p nix.StorePath) (part hashPart) {
	copy(part[:], p.Base())
	return part
}

// describe hashes a tree and looks for hash parts in it, whose paths resolve returns.
func describe(ctx context.Context, dir nix.StoreDir, name, path string, parts map[hashPart]struct{}, resolve func(map[hashPart]struct{}) ([]nix.StorePath, error)) (*nix.PathInfo, error) {
	scan := &scanner{candidates: parts}
	out := &hashedOutput{hasher: nar.NewHasher(sha256.New())}
	err := nar.Dump(ctx, io.MultiWriter(out, scan), path)
	sum := nix.SHA256Hash([sha256.Size]byte(out.hasher.Sum()))
	if err != nil {
		return nil, err
	}
	refs, err := resolve(scan.found)
	if err != nil {
		return nil, err
	}
	ca := nix.ContentAddress{Method: nix.Recursive, Hash: sum}
	p, err := dir.ContentAddressedPath(name, ca, refs, false)
	if err != nil {
		return nil, err
	}
	info := &nix.PathInfo{Path: p, NARHash: sum, NARSize: out.size, References: refs, CA: ca.String()}
	info.SortReferences()
	return info, nil
}

// importTree reads the tree a second time; if it has changed, its hash is wrong.
func (s *Store) importTree(ctx context.Context, info *nix.PathInfo, path string) error {
	im := s.NewImport(ImportOptions{Workers: 1})
	contents, w := io.Pipe()
	dumped := make(chan struct{})
	go func() {
		defer close(dumped)
		w.CloseWithError(nar.Dump(ctx, w, path))
	}()
	verdict := make(chan error, 1)
	err := im.Add(ctx, info, contents, func(err error) { verdict <- err })
	contents.Close()
	<-dumped
	closeErr := im.Close()
	if err != nil {
		return err
	}
	return errors.Join(<-verdict, closeErr)
}

// A hashPart is the hash part of a store path, in text.
type hashPart [32]byte

// hashParts returns those of all valid paths.
func (s *Store) hashParts(ctx context.Context) (map[hashPart]struct{}, error) {
	var parts map[hashPart]struct{}
	err := s.db.read(ctx, func(conn *sqlite.Conn) error {
		parts = make(map[hashPart]struct{})
		stmt, err := conn.Prepare("SELECT substr(path, ?, ?) FROM ValidPaths")
		if err != nil {
			return err
		}
		defer stmt.Reset()
		var part hashPart
		stmt.BindInt64(1, int64(len(s.config.StoreDir))+2)
		stmt.BindInt64(2, int64(len(part)))
		for {
			if more, err := stmt.Step(); err != nil || !more {
				return err
			}
			copy(part[:], stmt.ColumnText(0))
			parts[part] = struct{}{}
		}
	})
	return parts, err
}

// pathsOfParts returns the valid paths that have the hash parts, sorted.
func (s *Store) pathsOfParts(ctx context.Context, parts map[hashPart]struct{}) ([]nix.StorePath, error) {
	var paths []nix.StorePath
	err := s.db.read(ctx, func(conn *sqlite.Conn) error {
		paths = nil
		stmt, err := conn.Prepare("SELECT path FROM ValidPaths WHERE path > ? AND path < ? LIMIT 1")
		if err != nil {
			return err
		}
		defer stmt.Reset()
		for part := range parts {
			prefix := string(s.config.StoreDir) + "/" + string(part[:])
			stmt.BindText(1, prefix+"-")
			stmt.BindText(2, prefix+".") // which is the byte behind the dash
			if found, err := stmt.Step(); err != nil {
				return err
			} else if found {
				p, err := s.config.StoreDir.Parse(stmt.ColumnText(0))
				if err != nil {
					return err
				}
				paths = append(paths, p)
			}
			if err := stmt.Reset(); err != nil {
				return err
			}
		}
		return nil
	})
	slices.SortFunc(paths, nix.StorePath.Compare)
	return paths, err
}

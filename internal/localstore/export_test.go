package localstore

import (
	"context"
	"crypto/sha256"

	"zombiezen.com/go/sqlite"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// ScanFor returns which of candidates a scanner finds in writes.
func ScanFor(candidates []string, writes ...[]byte) map[string]bool {
	s := &scanner{candidates: make(map[hashPart]struct{})}
	for _, c := range candidates {
		s.candidates[hashPart([]byte(c))] = struct{}{}
	}
	for _, w := range writes {
		s.Write(w)
	}
	found := make(map[string]bool)
	for part := range s.found {
		found[string(part[:])] = true
	}
	return found
}

// Register makes paths valid without contents, references first.
func Register(ctx context.Context, s *Store, infos []*nix.PathInfo) error {
	batch := make([]*entry, len(infos))
	for i, info := range infos {
		batch[i] = &entry{info: info}
	}
	_, err := s.insert(ctx, batch, make(map[nix.StorePath]int64))
	return err
}

// ReadDuring calls meanwhile while the database is read for the first time, and
// returns how often it was read.
func ReadDuring(ctx context.Context, s *Store, meanwhile func()) (reads int, err error) {
	err = s.db.read(ctx, func(conn *sqlite.Conn) error {
		if reads++; reads == 1 {
			meanwhile()
		}
		_, err := queryInt(conn, "SELECT count(*) FROM ValidPaths")
		return err
	})
	return reads, err
}

// StartCollector begins what Delete does while it deletes paths.
func StartCollector(s *Store, paths []nix.StorePath) (end func() error, err error) {
	c, err := s.startCollector(paths)
	if err != nil {
		return nil, err
	}
	return c.close, nil
}

// WriteFile and ReplaceLink are what writes files and links through a draft.
var (
	WriteFile   = writeFile
	ReplaceLink = replaceLink
)

// HashModulo returns the digests of a stream modulo a hash part.
func HashModulo(part string, pieces ...[]byte) (digests []string) {
	w := newModuloWriter(sha256.New(), part)
	for _, piece := range pieces {
		w.Write(piece)
	}
	for _, digest := range w.finish() {
		digests = append(digests, string(digest))
	}
	return digests
}

// UpdateRow writes signatures and the time of registration of a valid path.
func UpdateRow(ctx context.Context, s *Store, p nix.StorePath, sigs string, registered int64) error {
	return s.db.write(ctx, func(conn *sqlite.Conn) error {
		return insertRow(conn, "UPDATE ValidPaths SET sigs = ?, registrationTime = ? WHERE path = ?", sigs, registered, p.String())
	})
}

// SetSync has sync called in place of the system's, before paths become valid.
func SetSync(s *Store, sync func() error) { s.syncContents = sync }

// MostLocks is the bound of an import of this process.
var MostLocks = mostLocks

// YieldAll has an import give up the locks of all that is in its queue.
func YieldAll(im *Import) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.yieldBeyond(0, im.queue)
}

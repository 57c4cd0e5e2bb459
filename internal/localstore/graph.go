package localstore

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"zombiezen.com/go/sqlite"

	"github.com/copy-closure/copy-closure/internal/nix"
)

const (
	// bytesPerPath is about what a valid path and its references take in a
	// database; the number of paths is not to be had without counting them.
	bytesPerPath = 700
	// fewShare is the part of a database below which single queries for each
	// path are faster than reading a whole table.
	fewShare = 1.0 / 32
	// maxLoadedID bounds the memory that a whole table takes: row numbers are
	// never used again, so they may be much larger than the number of rows.
	maxLoadedID = 4 << 20
)

// A graph is a set of valid paths, as row numbers, that grows along references.
// It lives within one transaction.
type graph struct {
	conn  *sqlite.Conn
	dir   nix.StoreDir
	few   int // nodes that are worth single queries
	maxID int64

	ids   []int64       // in the order they were added
	index map[int64]int // of an id in ids, until the tables are loaded
	place []int32       // the same plus one, 0 for other ids, from then on
	refs  [][]int64     // of the first ids; the others' are not known yet

	// The whole table of references, if loaded: id refers to
	// targets[starts[id]:starts[id+1]].
	starts  []uint32
	targets []int64
}

func newGraph(conn *sqlite.Conn, dir nix.StoreDir) (*graph, error) {
	g := &graph{conn: conn, dir: dir, index: make(map[int64]int)}
	var pages, free, size int64
	for _, q := range []struct {
		query string
		into  *int64
	}{
		{"PRAGMA page_count", &pages},
		{"PRAGMA freelist_count", &free},
		{"PRAGMA page_size", &size},
		{"SELECT ifnull(max(id), 0) FROM ValidPaths", &g.maxID},
	} {
		var err error
		if *q.into, err = queryInt(conn, q.query); err != nil {
			return nil, err
		}
	}
	g.few = int(fewShare * float64((pages-free)*size/bytesPerPath))
	return g, nil
}

// many reports whether the set has grown so large that whole tables are faster.
func (g *graph) many() bool { return len(g.ids) > g.few }

// add adds a node.
func (g *graph) add(id int64) {
	if _, ok := g.find(id); ok {
		return
	}
	if g.ids = append(g.ids, id); g.place != nil {
		g.place[id] = int32(len(g.ids))
	} else {
		g.index[id] = len(g.ids) - 1
	}
}

// find returns where in ids an id is.
func (g *graph) find(id int64) (int, bool) {
	if g.place == nil {
		i, ok := g.index[id]
		return i, ok
	}
	if id < 0 || id >= int64(len(g.place)) {
		return 0, false
	}
	i := int(g.place[id]) - 1
	return i, i >= 0
}

// close adds what the nodes refer to, in any number of steps.
func (g *graph) close() error {
	for len(g.refs) < len(g.ids) {
		refs, err := g.nextRefs()
		if err != nil {
			return err
		}
		for _, ref := range refs {
			g.add(ref)
		}
	}
	return nil
}

// nextRefs finds the references of the first node whose are not known.
func (g *graph) nextRefs() ([]int64, error) {
	if g.starts == nil && g.many() && g.maxID <= maxLoadedID {
		if err := g.loadRefs(); err != nil {
			return nil, err
		}
	}
	id := g.ids[len(g.refs)]
	var refs []int64
	if g.starts != nil {
		refs = g.targets[g.starts[id]:g.starts[id+1]]
	} else {
		var err error
		if refs, err = g.queryRefs(id); err != nil {
			return nil, err
		}
	}
	g.refs = append(g.refs, refs)
	return refs, nil
}

func (g *graph) queryRefs(id int64) ([]int64, error) {
	stmt, err := g.conn.Prepare("SELECT reference FROM Refs WHERE referrer = ?")
	if err != nil {
		return nil, err
	}
	defer stmt.Reset()
	stmt.BindInt64(1, id)
	var refs []int64
	for {
		if more, err := stmt.Step(); err != nil || !more {
			return refs, err
		}
		refs = append(refs, stmt.ColumnInt64(0))
	}
}

// loadRefs reads the whole table of references, which has an index in this order.
func (g *graph) loadRefs() error {
	stmt, err := g.conn.Prepare("SELECT referrer, reference FROM Refs ORDER BY referrer, reference")
	if err != nil {
		return err
	}
	defer stmt.Reset()
	starts := make([]uint32, 1, g.maxID+2)
	for {
		more, err := stmt.Step()
		if err != nil {
			return err
		}
		if !more {
			break
		}
		from, to := stmt.ColumnInt64(0), stmt.ColumnInt64(1)
		if from > g.maxID || to > g.maxID || from < 0 || to < 0 {
			return fmt.Errorf("a reference from row %d to row %d has no path", from, to)
		}
		for int64(len(starts)) <= from {
			starts = append(starts, uint32(len(g.targets)))
		}
		g.targets = append(g.targets, to)
	}
	for int64(len(starts)) <= g.maxID+1 {
		starts = append(starts, uint32(len(g.targets)))
	}
	g.starts = starts
	g.place = make([]int32, g.maxID+1)
	for i, id := range g.ids {
		if id > g.maxID {
			return fmt.Errorf("row %d of the valid paths is missing", id)
		}
		g.place[id] = int32(i) + 1
	}
	g.index = nil
	return nil
}

// infos returns the infos of the nodes in their order.
func (g *graph) infos() ([]*nix.PathInfo, error) {
	for len(g.refs) < len(g.ids) {
		if _, err := g.nextRefs(); err != nil {
			return nil, err
		}
	}
	infos := make([]*nix.PathInfo, len(g.ids))
	load := g.loadFew
	if g.many() {
		load = g.loadMany
	}
	if err := load(infos); err != nil {
		return nil, err
	}
	for i, info := range infos {
		if info == nil {
			return nil, fmt.Errorf("row %d of the valid paths is missing", g.ids[i])
		}
	}
	return infos, g.nameRefs(infos)
}

func (g *graph) loadFew(infos []*nix.PathInfo) error {
	stmt, err := g.conn.Prepare("SELECT " + infoColumns + " FROM ValidPaths WHERE id = ?")
	if err != nil {
		return err
	}
	defer stmt.Reset()
	for i, id := range g.ids {
		stmt.BindInt64(1, id)
		found, err := stmt.Step()
		if err == nil && found {
			infos[i], err = readInfo(stmt, g.dir)
		}
		if err == nil {
			err = stmt.Reset()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (g *graph) loadMany(infos []*nix.PathInfo) error {
	stmt, err := g.conn.Prepare("SELECT " + infoColumns + " FROM ValidPaths")
	if err != nil {
		return err
	}
	defer stmt.Reset()
	for {
		if more, err := stmt.Step(); err != nil || !more {
			return err
		}
		if i, ok := g.find(stmt.ColumnInt64(0)); ok {
			if infos[i], err = readInfo(stmt, g.dir); err != nil {
				return err
			}
		}
	}
}

// nameRefs sets the references of infos, sorted. To compare places in the order of
// all paths is much faster than to compare paths.
func (g *graph) nameRefs(infos []*nix.PathInfo) error {
	sorted, places := sortPaths(infos)
	others := make(map[int64]nix.StorePath) // paths that are not in the set
	var inside []int
	for i, info := range infos {
		info.References = make([]nix.StorePath, 0, len(g.refs[i]))
		inside = inside[:0]
		for _, ref := range g.refs[i] {
			if j, ok := g.find(ref); ok {
				inside = append(inside, places[j])
				continue
			}
			p, err := g.other(others, ref)
			if err != nil {
				return fmt.Errorf("references of %s: %w", info.Path, err)
			}
			info.References = append(info.References, p)
		}
		outside := len(info.References)
		slices.Sort(inside)
		for _, place := range inside {
			info.References = append(info.References, sorted[place])
		}
		if outside > 0 {
			info.SortReferences()
		}
	}
	return nil
}

// sortPaths returns the paths of infos in their order, and the place of each there.
func sortPaths(infos []*nix.PathInfo) (sorted []nix.StorePath, places []int) {
	type key struct {
		first uint64 // bytes of the hash part, which nearly always decide
		i     int
	}
	keys := make([]key, len(infos))
	for i, info := range infos {
		keys[i] = key{binary.BigEndian.Uint64([]byte(info.Path.HashPart())), i}
	}
	slices.SortFunc(keys, func(a, b key) int {
		if a.first != b.first {
			return cmp.Compare(a.first, b.first)
		}
		return infos[a.i].Path.Compare(infos[b.i].Path)
	})
	sorted, places = make([]nix.StorePath, len(infos)), make([]int, len(infos))
	for place, k := range keys {
		sorted[place], places[k.i] = infos[k.i].Path, place
	}
	return sorted, places
}

// other returns the path of a row that is not a node.
func (g *graph) other(known map[int64]nix.StorePath, id int64) (nix.StorePath, error) {
	if p, ok := known[id]; ok {
		return p, nil
	}
	stmt, err := g.conn.Prepare("SELECT path FROM ValidPaths WHERE id = ?")
	if err != nil {
		return nix.StorePath{}, err
	}
	defer stmt.Reset()
	stmt.BindInt64(1, id)
	found, err := stmt.Step()
	if err != nil {
		return nix.StorePath{}, err
	}
	if !found {
		return nix.StorePath{}, fmt.Errorf("row %d of the valid paths is missing", id)
	}
	p, err := g.dir.Parse(stmt.ColumnText(0))
	if err == nil {
		known[id] = p
	}
	return p, err
}

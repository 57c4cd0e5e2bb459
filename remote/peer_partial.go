package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// A KeepingImporter keeps what came of large NARs that broke off, for this session or a
// later one.
type KeepingImporter interface {
	Importer
	// KeepPartials is called before anything else.
	KeepPartials()
	// Partial returns the hash that a path's NAR was to have, and how many bytes of it
	// are kept; 0 if none are.
	Partial(p nix.StorePath) (narHash nix.Hash, size int64)
	// OpenPartial returns the first size bytes. An Add that begins with them fails with
	// nix.ErrDamaged where they are wrong, and they are not kept any longer.
	OpenPartial(ctx context.Context, info *nix.PathInfo, size int64) (io.ReadCloser, error)
}

// A kept is what the far end has of a path.
type kept struct {
	narHash nix.Hash
	size    int64
}

// Kept asks how much of their NARs the far end has kept from copies that broke off, and
// returns the sizes that are not 0. One goroutine may ask at a time, beside one in
// Bases.
func (p *Peer) Kept(ctx context.Context, infos []*nix.PathInfo) (map[nix.StorePath]int64, error) {
	sizes := make(map[nix.StorePath]int64)
	for part := range slices.Chunk(infos, maxAsked) {
		answer := make(chan []kept, 1)
		p.mu.Lock()
		p.asking, p.kept = len(part), answer
		p.mu.Unlock()
		fields := appendUvarint(nil, uint64(len(part)))
		for _, info := range part {
			fields = appendPath(fields, info.Path)
		}
		if err := p.out.sendNow(msgKept, fields); err != nil {
			return nil, err
		}
		select {
		case found := <-answer:
			for i, k := range found {
				if k.narHash == part[i].NARHash && k.size < part[i].NARSize {
					sizes[part[i].Path] = k.size
				}
			}
		case <-p.gone:
			return nil, p.bundle.failure()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return sizes, nil
}

// takeSizes reads the answer to Kept.
func (p *Peer) takeSizes(m message) error {
	p.mu.Lock()
	asking, answer := p.asking, p.kept
	p.asking, p.kept = 0, nil
	p.mu.Unlock()
	if answer == nil {
		return &wire.FormatError{Msg: "it tells sizes that were not asked for"}
	}
	all := make([]kept, asking)
	for i := range all {
		if size := m.payload.uvarint(1<<63 - 1); size > 0 {
			all[i] = kept{m.payload.hash(), int64(size)}
		}
	}
	if err := m.payload.end(); err != nil {
		return err
	}
	answer <- all
	return nil
}

// AddRest is Add without the first offset bytes of the NAR, which the far end has kept.
// Where those turn out to be wrong the whole follows, after AddRest has returned.
func (c *Channel) AddRest(ctx context.Context, info *nix.PathInfo, offset int64, whole, nar io.WriterTo, done func(error)) error {
	number, err := c.p.expect(&peerAdd{path: info.Path, done: done, again: func(number uint64) {
		c.p.sendWhole(number, info, whole)
	}})
	if err != nil {
		done(err)
		return err
	}
	return c.send(number, info, offset, nar)
}

// takeKept tells how much there is of each path that the client is about to send.
func (p *peerServer) takeKept(ctx context.Context, m message) error {
	var paths []nix.StorePath
	for range m.payload.count(maxAsked) {
		paths = append(paths, m.payload.path(p.dir))
	}
	if err := m.payload.end(); err != nil {
		return err
	}
	if err := p.mayWrite("add paths"); err != nil {
		return err
	}
	if err := p.openImporter(ctx); err != nil {
		return err
	}
	keeping, ok := p.importer.(KeepingImporter)
	var fields []byte
	for _, path := range paths {
		var k kept
		if ok {
			k.narHash, k.size = keeping.Partial(path)
		}
		fields = appendUvarint(fields, uint64(k.size))
		if k.size > 0 {
			fields = append(fields, k.narHash.Bytes()...)
		}
	}
	return p.out.sendNow(msgSizes, fields)
}

// errPartial says that a path cannot be had of what was kept of it.
var errPartial = errors.New("what was kept of it is of no use")

// addRest adds a path of which the beginning was kept. Where that is wrong the client is
// asked for the whole.
func (p *peerServer) addRest(ctx context.Context, in *inbox, i item) error {
	keeping, ok := p.importer.(KeepingImporter)
	if !ok {
		return &wire.FormatError{Msg: fmt.Sprintf("the client leaves out a part of %s, which was not offered", i.info.Path)}
	}
	return p.addMade(ctx, in, i, func(decide func(error)) error {
		kept, err := keeping.OpenPartial(ctx, i.info, i.offset)
		if err != nil {
			return fmt.Errorf("%w: %w", errPartial, err)
		}
		defer kept.Close()
		nar := io.MultiReader(markedReader{kept, errPartial}, in)
		return p.importer.Add(ctx, i.info, nar, decide)
	})
}

// A markedReader marks errors.
type markedReader struct {
	r    io.Reader
	mark error
}

func (m markedReader) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%w: %w", m.mark, err)
	}
	return n, err
}

package remote

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// A KeepingImporter keeps what came of large NARs that broke off, for this session or a
// later one.
type KeepingImporter interface {
	Importer
	// KeepPartials is called before anything else. Nothing is kept of paths for which
	// vouched returns false; nil means all.
	KeepPartials(vouched func(*nix.PathInfo) bool)
	// Partial returns the hash that a path's NAR was to have, and how many bytes of it
	// are kept; 0 if none are.
	Partial(p nix.StorePath) (narHash nix.Hash, size int64)
	// OpenPartial returns the first size bytes. An Add that begins with them fails with
	// nix.ErrDamaged where they are wrong, and they are not kept any longer.
	OpenPartial(ctx context.Context, info *nix.PathInfo, size int64) (io.ReadCloser, error)
}

// AddRest is Add without the first offset bytes of the NAR, which the far end has kept.
// Where those turn out to be wrong the whole follows, after AddRest has returned.
func (c *Channel) AddRest(ctx context.Context, info *nix.PathInfo, offset int64, whole, nar io.WriterTo, done func(error)) error {
	number, err := c.p.expect(&peerAdd{path: info.Path, done: done, again: func(number uint64) {
		c.p.sendWhole(number, info, whole)
	}})
	if err != nil {
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
		var kept partial
		if ok {
			kept.narHash, kept.size = keeping.Partial(path)
		}
		fields = appendUvarint(fields, uint64(kept.size))
		if kept.size > 0 {
			fields = append(fields, kept.narHash.Bytes()...)
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

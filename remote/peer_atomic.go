package remote

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/copy-closure/copy-closure/internal/wire"
)

// An AtomicImporter can make paths valid together.
type AtomicImporter interface {
	Importer
	// Atomic says, before the first Add, that nothing becomes valid until Flush finds so
	// many paths complete, and that Close removes what was not flushed.
	Atomic(paths int) error
}

// OffersAtomic reports whether Peer.Atomic can be called. It is known after the first
// answer.
func (s *Store) OffersAtomic() bool {
	return s.OffersPeer() && s.first.prelude.offer.atomic
}

// Atomic has the paths that are added become valid together, when Finish is called and
// there are so many, or not at all. It is called before the first of them is added.
func (p *Peer) Atomic(paths int) error {
	return p.out.send(msgAtomic, binary.AppendUvarint(nil, uint64(paths)), nil)
}

func (p *peerServer) takeAtomic(ctx context.Context, m message) error {
	paths := int(m.payload.uvarint(wire.MaxPaths))
	if err := m.payload.end(); err != nil {
		return err
	}
	if paths == 0 {
		return &wire.FormatError{Msg: "no paths shall become valid together"}
	}
	if err := p.mayWrite("add paths"); err != nil {
		return err
	}
	for _, in := range p.taking {
		if in != nil {
			return &wire.FormatError{Msg: "that paths belong together is said behind the first of them"}
		}
	}
	if err := p.openImporter(ctx); err != nil {
		return fmt.Errorf("add paths: %w", err)
	}
	importer, ok := p.importer.(AtomicImporter)
	if !ok {
		return &wire.FormatError{Msg: "paths shall become valid together, which was not offered"}
	}
	return importer.Atomic(paths)
}

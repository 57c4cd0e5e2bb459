package remote

import (
	"context"
	"slices"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// maxAsked is the number of paths about which a message asks at most.
const maxAsked = 1 << 15

// A question is one that the far end answers for each of some paths. It is asked by one
// goroutine at a time; others may ask other questions.
type question[A any] struct {
	paths  int      // asked about
	answer chan []A // nil while nothing is asked
}

// ask sends the question about each of all, and returns the answers in the same order. It
// costs a round trip for each message, of which one is enough for most closures.
func ask[A, P any](ctx context.Context, p *Peer, q *question[A], kind byte, all []P, encode func([]byte, P) []byte) ([]A, error) {
	answers := make([]A, 0, len(all))
	for part := range slices.Chunk(all, maxAsked) {
		answer := make(chan []A, 1)
		p.mu.Lock()
		q.paths, q.answer = len(part), answer
		p.mu.Unlock()
		fields := appendUvarint(nil, uint64(len(part)))
		for _, one := range part {
			fields = encode(fields, one)
		}
		if err := p.out.sendNow(kind, fields); err != nil {
			return nil, err
		}
		select {
		case some := <-answer:
			answers = append(answers, some...)
		case <-p.gone:
			return nil, p.bundle.failure()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return answers, nil
}

// takeAnswers hands the answers to a question to whoever asked it.
func takeAnswers[A any](p *Peer, q *question[A], m message, decode func(*payload) A) error {
	p.mu.Lock()
	paths, answer := q.paths, q.answer
	q.paths, q.answer = 0, nil
	p.mu.Unlock()
	if answer == nil {
		return &wire.FormatError{Msg: "it tells of paths that it was not asked about"}
	}
	all := make([]A, paths)
	for i := range all {
		all[i] = decode(&m.payload)
	}
	if err := m.payload.end(); err != nil {
		return err
	}
	answer <- all
	return nil
}

// A Base is a path that the far end has, and which a delta may be against.
type Base struct {
	Path    nix.StorePath
	NARHash nix.Hash
}

// Bases asks the far end for a base for each of paths, and returns what it has.
func (p *Peer) Bases(ctx context.Context, paths []nix.StorePath) (map[nix.StorePath]Base, error) {
	p.store.rounds.Add(1)
	answers, err := ask(ctx, p, &p.bases, msgAsk, paths, appendPath)
	bases := make(map[nix.StorePath]Base)
	for i, base := range answers {
		if !base.Path.IsZero() {
			bases[paths[i]] = base
		}
	}
	return bases, err
}

func (p *Peer) takeBases(m message) error {
	return takeAnswers(p, &p.bases, m, func(m *payload) (base Base) {
		if m.uvarint(1) == 1 {
			base = Base{m.path(p.dir), m.hash()}
		}
		return base
	})
}

// A partial is what an end has kept of a NAR that broke off.
type partial struct {
	narHash nix.Hash // that the whole was to have
	size    int64    // 0: nothing
}

// Kept asks how much of their NARs the far end has kept from copies that broke off, and
// returns the sizes that are not 0.
func (p *Peer) Kept(ctx context.Context, infos []*nix.PathInfo) (map[nix.StorePath]int64, error) {
	answers, err := ask(ctx, p, &p.kept, msgKept, infos, func(b []byte, info *nix.PathInfo) []byte {
		return appendPath(b, info.Path)
	})
	sizes := make(map[nix.StorePath]int64)
	for i, kept := range answers {
		if kept.size > 0 && kept.narHash == infos[i].NARHash && kept.size < infos[i].NARSize {
			sizes[infos[i].Path] = kept.size
		}
	}
	return sizes, err
}

func (p *Peer) takeSizes(m message) error {
	return takeAnswers(p, &p.kept, m, func(m *payload) (kept partial) {
		if size := m.uvarint(1<<63 - 1); size > 0 {
			kept = partial{m.hash(), int64(size)}
		}
		return kept
	})
}

// Common asks which of some paths of this end are at the far end as well, with the same
// NAR. It keeps those from garbage collection.
func (p *Peer) Common(ctx context.Context, infos []*nix.PathInfo) (map[nix.StorePath]bool, error) {
	p.store.rounds.Add(1)
	answers, err := ask(ctx, p, &p.common, msgCommon, infos, func(b []byte, info *nix.PathInfo) []byte {
		return append(appendPath(b, info.Path), info.NARHash.Bytes()...)
	})
	common := make(map[nix.StorePath]bool)
	for i, there := range answers {
		common[infos[i].Path] = there
	}
	return common, err
}

func (p *Peer) takeThere(m message) error {
	return takeAnswers(p, &p.common, m, func(m *payload) bool { return m.uvarint(1) == 1 })
}

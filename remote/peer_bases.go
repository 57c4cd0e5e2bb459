package remote

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/copy-closure/copy-closure/internal/delta"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// An Archive is the NAR of a valid path, to be read anywhere.
type Archive interface {
	delta.Source
	io.Closer
}

// A BaseBackend is a Backend whose paths can be the bases of deltas. AllPaths is called
// as other methods are, OpenArchive by several goroutines.
type BaseBackend interface {
	Backend
	AllPaths(ctx context.Context) ([]nix.StorePath, error)
	OpenArchive(ctx context.Context, p nix.StorePath) (Archive, error)
}

// smallPatch is the size of NARs that are put together in memory.
const smallPatch = 256 << 10

// serverBases are what deltas of a session may be against.
type serverBases struct {
	mu    sync.Mutex
	infos map[nix.StorePath]*nix.PathInfo // offered, and held
	size  int                             // bytes of memory that infos take
	owed  map[uint64]bool                 // paths that are asked for as a whole
	paid  *sync.Cond                      // when there are none
}

func (b *serverBases) init() {
	b.infos, b.owed, b.paid = make(map[nix.StorePath]*nix.PathInfo), make(map[uint64]bool), sync.NewCond(&b.mu)
}

// maxBases is how many bytes of path infos of bases a session keeps.
const maxBases = 64 << 20

// add keeps a base that is offered. It reports false where there are too many. The caller
// holds b.mu.
func (b *serverBases) add(info *nix.PathInfo) bool {
	size := b.size + info.MemorySize()
	if old := b.infos[info.Path]; old != nil {
		size -= old.MemorySize()
	}
	if size > maxBases {
		return false
	}
	b.size = size
	b.infos[info.Path] = info
	return true
}

func (b *serverBases) info(p nix.StorePath) *nix.PathInfo {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.infos[p]
}

// takeAsk offers a base for each path that the client is about to send.
func (p *peerServer) takeAsk(ctx context.Context, m message) error {
	var wants []nix.StorePath
	for range m.payload.count(maxAsked) {
		wants = append(wants, m.payload.path(p.dir))
	}
	if err := m.payload.end(); err != nil {
		return err
	}
	found, err := p.findBases(ctx, wants)
	if err != nil {
		p.options.Logger.Warn("no bases for deltas", "error", err)
	}
	var fields []byte
	for _, want := range wants {
		info := found[want]
		if info == nil {
			fields = append(fields, 0)
			continue
		}
		fields = append(appendPath(append(fields, 1), info.Path), info.NARHash.Bytes()...)
	}
	return p.out.sendNow(msgBases, fields)
}

// findBases chooses among all valid paths, and keeps what it chose from garbage
// collection, unless the client only looks.
func (p *peerServer) findBases(ctx context.Context, wants []nix.StorePath) (map[nix.StorePath]*nix.PathInfo, error) {
	backend, ok := p.backend.(BaseBackend)
	if !ok {
		return nil, nil
	}
	var hold func(context.Context, []nix.StorePath) error
	if p.options.Write {
		hold = p.backend.Hold
	}
	found, err := delta.FindBases(ctx, backend, hold, wants)
	if err != nil {
		return nil, err
	}
	p.bases.mu.Lock()
	defer p.bases.mu.Unlock()
	for want, info := range found {
		if !p.bases.add(info) {
			delete(found, want)
		}
	}
	return found, nil
}

// openBase opens a base that was offered.
func (p *peerServer) openBase(ctx context.Context, path nix.StorePath, want *nix.PathInfo) (Archive, delta.Mapping, error) {
	info := p.bases.info(path)
	if info == nil {
		return nil, delta.Mapping{}, &wire.FormatError{Msg: fmt.Sprintf("the client takes %s for a base, which was not offered", path)}
	}
	archive, err := p.backend.(BaseBackend).OpenArchive(ctx, path)
	if err != nil {
		return nil, delta.Mapping{}, &delta.BaseError{Err: err}
	}
	return archive, delta.MapReferences(info, want), nil
}

// errPatch says that a delta did not make the path.
var errPatch = errors.New("the delta does not fit")

// addPatch puts a path together from its base and a delta, and adds it.
func (p *peerServer) addPatch(ctx context.Context, in *inbox, i item) error {
	return p.addMade(ctx, in, i, func(decide func(error)) error { return p.decode(ctx, in, i, decide) })
}

// addMade adds a path whose NAR is made of what comes and what is here already. Where
// that does not work the client is asked for the whole.
func (p *peerServer) addMade(ctx context.Context, in *inbox, i item, add func(decide func(error)) error) error {
	if p.options.Check != nil {
		if err := p.options.Check(i.info); err != nil {
			p.decide(i.number, err)
			_, err := in.skip()
			return err
		}
	}
	var once sync.Once
	decide := func(err error) {
		once.Do(func() {
			var aborted *FarError
			switch {
			case p.options.InOrder && errors.Is(err, errPatch) && errors.As(err, &aborted):
				// The whole comes next.
			case errors.Is(err, nix.ErrDamaged) || errors.Is(err, errPatch) || errors.Is(err, errPartial):
				p.askForWhole(i.number, err)
			default:
				p.decide(i.number, err)
			}
		})
	}
	err := add(decide)
	var format *wire.FormatError
	if errors.As(err, &format) {
		return err
	}
	if err != nil {
		decide(err)
	}
	_, err = in.skip()
	return err
}

// decode has the importer read what the delta makes.
func (p *peerServer) decode(ctx context.Context, in *inbox, i item, decide func(error)) error {
	archive, mapping, err := p.openBase(ctx, i.base, i.info)
	var unreadable *delta.BaseError
	if errors.As(err, &unreadable) {
		return fmt.Errorf("%w: %w", errPatch, err)
	}
	if err != nil {
		return err
	}
	defer archive.Close()
	if i.info.NARSize <= smallPatch {
		var content bytes.Buffer
		if err := delta.Decode(&content, archive, mapping, bufio.NewReader(in), i.info.NARSize); err != nil {
			return fmt.Errorf("%w: %w", errPatch, err)
		}
		if err := i.info.CheckNAR(nix.SHA256Hash(sha256.Sum256(content.Bytes())), int64(content.Len())); err != nil {
			return err
		}
		return p.importer.Add(ctx, i.info, &content, decide)
	}
	r, w := io.Pipe()
	var decoding sync.WaitGroup
	decoding.Go(func() {
		err := delta.Decode(w, archive, mapping, bufio.NewReader(in), i.info.NARSize)
		if err != nil {
			err = fmt.Errorf("%w: %w", errPatch, err)
		}
		w.CloseWithError(err)
	})
	err = p.importer.Add(ctx, i.info, r, decide)
	r.CloseWithError(errPatch)
	decoding.Wait()
	return err
}

// askForWhole has the client send a path again, as it is.
func (p *peerServer) askForWhole(number uint64, reason error) {
	p.options.Logger.Info("a path could not be made of what is here, and is sent as a whole", "reason", reason)
	if !p.options.InOrder { // else it comes at once, or never
		p.bases.mu.Lock()
		p.bases.owed[number] = true
		p.bases.mu.Unlock()
	}
	p.out.sendNow(msgWhole, appendUvarint(nil, number))
}

// pay says that a path which was asked for as a whole has come.
func (p *peerServer) pay(number uint64) {
	p.bases.mu.Lock()
	defer p.bases.mu.Unlock()
	delete(p.bases.owed, number)
	p.bases.paid.Broadcast()
}

// awaitPayment waits until no path is owed, or there is nobody to send it.
func (p *peerServer) awaitPayment() {
	p.bases.mu.Lock()
	defer p.bases.mu.Unlock()
	for len(p.bases.owed) > 0 {
		select {
		case <-p.over:
			return
		default:
		}
		p.bases.paid.Wait()
	}
}

// takeSign reads a request for the signature of a base.
func (p *peerServer) takeSign(ctx context.Context, m message) error {
	channel := m.payload.channelNumber()
	i := item{kind: m.kind, base: m.payload.path(p.dir), info: m.payload.pathInfo(p.dir)}
	if err := m.payload.end(); err != nil {
		return err
	}
	return p.request(ctx, channel, i)
}

// sign sends the signature of a base.
func (p *peerServer) sign(ctx context.Context, out *channelWriter, i item) error {
	archive, mapping, err := p.openBase(ctx, i.base, i.info)
	if err != nil {
		return err
	}
	defer archive.Close()
	out.begin(delta.SignatureSize(archive.Size()))
	if err := delta.SignFor(out, archive, mapping, i.info); err != nil {
		return err
	}
	return out.end()
}

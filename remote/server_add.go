package remote

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

const (
	serverMaxCA   = 1 << 8  // bytes
	serverMaxAdds = 1 << 14 // paths that were read and are not acknowledged
)

func (s *server) addToStoreNAR(ctx context.Context) error {
	if err := s.mayWrite("add paths"); err != nil {
		return err
	}
	info, err := readAddedInfo(s.in, s.dir)
	if err != nil {
		return err
	}
	if err := s.out.Flush(); err != nil {
		return err
	}
	return s.add(ctx, info, s.in.Raw(), true)
}

// readAddedInfo reads the path info that comes with a path to be added.
func readAddedInfo(r *wire.Reader, dir nix.StoreDir) (*nix.PathInfo, error) {
	info := &nix.PathInfo{Path: r.Path(dir)}
	info.Deriver = r.OptionalPath(dir)
	digest := r.String(wire.MaxField)
	info.References = r.Paths(dir, wire.MaxReferences)
	info.SortReferences()
	info.Registered = fromUnix(r.Int64())
	info.NARSize = r.Int64()
	r.Bool() // ultimate: that it was built there means nothing here
	info.Signatures = r.Signatures()
	info.CA = r.String(serverMaxCA)
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("read a request to add a path: %w", err)
	}
	hash, err := nix.ParseDigest(nix.SHA256, digest)
	if err != nil {
		return nil, fmt.Errorf("add %s: %w", info.Path, err)
	}
	info.NARHash = hash
	if info.NARSize == 0 {
		return nil, fmt.Errorf("add %s: %w", info.Path, &wire.FormatError{Msg: "its NAR has no size"})
	}
	return info, nil
}

// add hands a path to the importer, whose verdict comes later: an acknowledgement
// where one is due, or the end of the session.
func (s *server) add(ctx context.Context, info *nix.PathInfo, r io.Reader, acknowledge bool) error {
	if s.options.Check != nil {
		if err := s.options.Check(info); err != nil {
			return fmt.Errorf("add %s: %w", info.Path, err)
		}
	}
	if err := s.beginAdds(ctx); err != nil {
		return fmt.Errorf("add %s: %w", info.Path, err)
	}
	add := newServerAdd(info.Path, acknowledge)
	if err := s.adds.push(add); err != nil {
		return err
	}
	if err := s.take(ctx, info, r, add); err != nil {
		return fmt.Errorf("add %s: %w", info.Path, err)
	}
	return nil
}

// beginAdds makes adds ready.
func (s *server) beginAdds(ctx context.Context) error {
	if s.adds != nil {
		return nil
	}
	importer, err := s.backend.Import(ctx)
	if err != nil {
		return err
	}
	s.adds = newServerAdds(ctx, s, importer)
	return nil
}

// take hands the NAR to the importer. Its error, which is the verdict then, means that
// r is out of step.
func (s *server) take(ctx context.Context, info *nix.PathInfo, r io.Reader, add serverAdd) error {
	content := &io.LimitedReader{R: r, N: info.NARSize}
	err := s.adds.importer.Add(ctx, info, content, add.decide)
	if err == nil && content.N > 0 {
		err = fmt.Errorf("%d bytes of the NAR were left unread", content.N)
	}
	if err != nil {
		add.decide(err)
	}
	return err
}

// settle waits until all paths that were added are acknowledged.
func (s *server) settle() error {
	if s.adds == nil {
		return nil
	}
	return s.adds.settle()
}

// endAdds ends the import. Where the session fails with err, the paths before the
// failure get their due first; if one of them failed, that is the cause.
func (s *server) endAdds(err error) error {
	if err != nil {
		_ = s.adds.settle() // its error is the cause already
		s.stop(err)
	}
	closeErr := s.adds.close()
	if err == nil {
		err = closeErr
	}
	return err
}

// A serverAdd is a path on its way to being acknowledged, or, with settled set,
// a mark in the queue of those.
type serverAdd struct {
	path        nix.StorePath
	verdict     chan error // gets the importer's
	acknowledge bool       // the client waits for a word
	settled     chan struct{}
}

func newServerAdd(p nix.StorePath, acknowledge bool) serverAdd {
	return serverAdd{path: p, verdict: make(chan error, 1), acknowledge: acknowledge}
}

// decide keeps the first verdict.
func (add serverAdd) decide(err error) {
	select {
	case add.verdict <- err:
	default:
	}
}

// serverAdds acknowledges paths in the order in which they came. While there are
// any it alone writes to the client.
type serverAdds struct {
	session  *server
	importer Importer
	queue    chan serverAdd
	kick     chan struct{} // asks for a Flush

	flusher, acknowledger sync.WaitGroup
}

func newServerAdds(ctx context.Context, s *server, importer Importer) *serverAdds {
	a := &serverAdds{
		session:  s,
		importer: importer,
		queue:    make(chan serverAdd, serverMaxAdds),
		kick:     make(chan struct{}, 1),
	}
	a.acknowledger.Go(a.acknowledge)
	a.flusher.Go(func() { a.flushOnDemand(ctx) })
	return a
}

// push appends to the queue. Where that is full it asks for room and waits.
func (a *serverAdds) push(add serverAdd) error {
	select {
	case a.queue <- add:
		return nil
	default:
	}
	a.flush()
	select {
	case a.queue <- add:
		return nil
	case <-a.session.stopped:
		return a.session.cause
	}
}

// flush asks that what was added become valid soon, and does not wait.
func (a *serverAdds) flush() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// settle waits until everything in the queue is acknowledged.
func (a *serverAdds) settle() error {
	mark := serverAdd{settled: make(chan struct{})}
	if err := a.push(mark); err != nil {
		return err
	}
	a.flush()
	select {
	case <-mark.settled:
		return nil
	case <-a.session.stopped:
		return a.session.cause
	}
}

// flushOnDemand runs until kick is closed.
func (a *serverAdds) flushOnDemand(ctx context.Context) {
	for range a.kick {
		if err := a.importer.Flush(ctx); err != nil {
			a.session.stop(fmt.Errorf("add paths: %w", err))
		}
	}
}

// acknowledge runs until the queue is closed or the session has ended. It gathers
// what it can say at once.
func (a *serverAdds) acknowledge() {
	var words []byte
	for add := range a.queue {
		if add.settled == nil {
			if err := a.await(add, &words); err != nil {
				a.session.stop(err)
				return
			}
		}
		if add.settled != nil || len(a.queue) == 0 || len(words) >= 4096 {
			if err := a.say(&words); err != nil {
				a.session.stop(err)
				return
			}
		}
		if add.settled != nil {
			close(add.settled)
		}
	}
}

// await waits for a path's verdict, having said before it waits what there is to
// say, and appends the word that the path is due.
func (a *serverAdds) await(add serverAdd, words *[]byte) error {
	var err error
	select {
	case err = <-add.verdict:
	default:
		if err := a.say(words); err != nil {
			return err
		}
		select {
		case err = <-add.verdict:
		case <-a.session.stopped:
			return a.session.cause
		}
	}
	if *words, err = a.session.verdict(*words, add, err); err != nil {
		// What came before is valid, whatever becomes of the session.
		return errors.Join(err, a.say(words))
	}
	return nil
}

// serveVerdict knows one word for a path that is valid now, and none for another.
func serveVerdict(words []byte, add serverAdd, err error) ([]byte, error) {
	if err != nil {
		return words, fmt.Errorf("add %s: %w", add.path, err)
	}
	if add.acknowledge {
		words = binary.LittleEndian.AppendUint64(words, 1)
	}
	return words, nil
}

func (a *serverAdds) say(words *[]byte) error {
	if len(*words) == 0 {
		return nil
	}
	_, err := a.session.stream.Write(*words)
	*words = (*words)[:0]
	if err != nil {
		return fmt.Errorf("acknowledge paths: %w", err)
	}
	return nil
}

// close ends the import and waits for the workers. Paths that are complete become
// valid even where nobody can be told any more.
func (a *serverAdds) close() error {
	close(a.kick)
	a.flusher.Wait()
	err := a.importer.Close()
	close(a.queue)
	a.acknowledger.Wait()
	return err
}

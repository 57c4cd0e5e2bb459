package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// A DaemonBackend can also do what only the worker protocol asks for.
type DaemonBackend interface {
	Backend
	// AllPaths returns all valid paths.
	AllPaths(ctx context.Context) ([]nix.StorePath, error)
	// Referrers returns the valid paths that refer to p.
	Referrers(ctx context.Context, p nix.StorePath) ([]nix.StorePath, error)
	// PathOfHashPart returns the valid path with that hash part, zero if there is none.
	PathOfHashPart(ctx context.Context, part string) (nix.StorePath, error)
	// AddSignatures adds to those of p; the error wraps nix.ErrNotValid if p is not
	// valid.
	AddSignatures(ctx context.Context, p nix.StorePath, signatures []string) error
	// AddRoot makes link a link to p and a root.
	AddRoot(ctx context.Context, link string, p nix.StorePath) error
	// AddIndirectRoot makes a link a root that leads, or will lead, to a path.
	AddIndirectRoot(ctx context.Context, link string) error
	// Roots returns the links that are roots, with the paths that they lead to.
	Roots(ctx context.Context) (map[string]nix.StorePath, error)
}

// The oldest client of the worker protocol that is served: that of Nix 2.0.
const workerMinClient = 1<<8 | 18

// ServeDaemon answers one client of Nix's worker protocol, as nix-daemon --stdio does,
// until it hangs up between two requests, which is no error. Everything that can be
// told to the client is; the error is why the session ended before.
//
// Requests may come ahead of the answers to earlier ones. The stream is closed when
// ServeDaemon returns; its Close must end a Read that waits.
func ServeDaemon(ctx context.Context, stream io.ReadWriteCloser, b DaemonBackend, o ServerOptions) error {
	d := &daemonServer{server: newServer(stream, b, o), store: b}
	d.verdict = d.tellVerdict
	return d.run(ctx, d.serve)
}

// A daemonServer is one session.
type daemonServer struct {
	*server
	store    DaemonBackend
	features []string // that both ends know
	inGroup  error    // the first of the paths that are added without a word for each
	roots    int      // indirect roots that the client wanted
}

// since reports whether the client knows the fields of version 1.minor.
func (d *daemonServer) since(minor uint64) bool { return d.version >= 1<<8|minor }

// serve reads requests until the client is gone.
func (d *daemonServer) serve(ctx context.Context) error {
	if err := d.greet(); err != nil {
		return err
	}
	for {
		if d.adds != nil && d.in.Buffered() == 0 {
			d.adds.flush()
		}
		op := d.nextCommand()
		if err := d.in.Err(); errors.Is(err, io.EOF) {
			return d.settle()
		} else if err != nil {
			return fmt.Errorf("read a request: %w", err)
		}
		if op != opAddToStoreNAR {
			if err := d.settle(); err != nil {
				return err
			}
		}
		if err := d.answer(ctx, op); err != nil {
			return d.hangUp(err)
		}
	}
}

func (d *daemonServer) greet() error {
	magic := d.in.Uint64()
	if err := d.in.Err(); err != nil {
		return fmt.Errorf("read the client's greeting: %w", err)
	}
	if magic != workerMagicClient {
		return &wire.FormatError{Msg: "protocol mismatch: the client does not speak Nix's worker protocol"}
	}
	d.out.Uint64(workerMagicServer)
	d.out.Uint64(workerVersion)
	version := d.in.Uint64()
	if err := d.in.Err(); err != nil {
		return fmt.Errorf("read the client's greeting: %w", err)
	}
	if version>>8 != workerVersion>>8 || version < workerMinClient {
		return &wire.FormatError{Msg: fmt.Sprintf("the client speaks version %d.%d of the worker protocol, this is %d.%d",
			version>>8, version&0xff, workerVersion>>8, workerVersion&0xff)}
	}
	d.version = min(version, workerVersion)
	if d.version >= workerFeatures {
		d.features = slices.DeleteFunc(d.in.Strings(maxFeatures, wire.MaxField), func(f string) bool {
			return !slices.Contains(ourFeatures, f)
		})
		d.out.Strings(ourFeatures)
	}
	if d.in.Bool() { // a processor is preferred
		d.in.Uint64()
	}
	d.in.Bool() // space is reserved
	if err := d.in.Err(); err != nil {
		return fmt.Errorf("read the client's greeting: %w", err)
	}
	if d.version >= workerNixVersion {
		d.out.String("copy-closure")
	}
	if d.version >= workerTrust {
		d.out.Uint64(uint64(d.trust()))
	}
	d.out.Uint64(stderrLast)
	return nil
}

// trust is what the client is told of his rights.
func (d *daemonServer) trust() Trust {
	if d.options.Write && (d.options.Trust || d.options.Check == nil) {
		return Trusted
	}
	return NotTrusted
}

// hangUp tells a client that has broken the protocol why, twice as Nix does, because
// nobody knows whether he waits for an answer or reads one.
func (d *daemonServer) hangUp(err error) error {
	var format *wire.FormatError
	if errors.As(err, &format) {
		d.writeError(d.out, err)
		d.writeError(d.out, err)
		d.out.Flush() // the client may be gone
	}
	return err
}

// reply writes the answer to a request, or why there is none.
func (d *daemonServer) reply(err error, write func(w *wire.Writer)) error {
	if err != nil {
		d.writeError(d.out, err)
		return nil
	}
	d.out.Uint64(stderrLast)
	write(d.out)
	return nil
}

// nothing and one are answers that tell no more than that it is done.
func nothing(*wire.Writer) {}
func one(w *wire.Writer)   { w.Uint64(1) }

// refuse answers a request that has been read.
func (d *daemonServer) refuse(what, why string) error {
	if err := d.request(what); err != nil {
		return err
	}
	return d.reply(fmt.Errorf("%s: %s", what, why), nothing)
}

func (d *daemonServer) writeError(w *wire.Writer, err error) {
	text := err.Error()
	text = text[:min(len(text), wire.MaxText)]
	w.Uint64(stderrError)
	if d.version < workerStructured {
		w.String(text)
		w.Uint64(1) // exit status
		return
	}
	w.String("Error")
	w.Uint64(0) // level: an error
	w.String("Error")
	w.String(text)
	w.Uint64(0) // no position
	w.Uint64(0) // no traces
}

// tellVerdict answers for one path, or keeps the first error of a group.
func (d *daemonServer) tellVerdict(words []byte, add serverAdd, err error) ([]byte, error) {
	if err != nil {
		err = fmt.Errorf("add %s: %w", add.path, err)
	}
	if !add.acknowledge {
		if d.inGroup == nil {
			d.inGroup = err
		}
		return words, nil
	}
	var b bytes.Buffer
	w := wire.NewWriter(&b)
	if err != nil {
		d.writeError(w, err)
	} else {
		w.Uint64(stderrLast)
	}
	w.Flush()
	return append(words, b.Bytes()...), nil
}

func (d *daemonServer) answer(ctx context.Context, op uint64) error {
	switch {
	case op == opAddTempRoots && slices.Contains(d.features, featureTempRoots):
		return d.addTempRoots(ctx)
	case op == opQueryPathInfos && slices.Contains(d.features, featurePathInfos):
		return d.queryManyPathInfos(ctx)
	}
	switch op {
	case opIsValidPath:
		return d.isValidPath(ctx)
	case opQueryValidPaths:
		return d.queryValidPaths(ctx)
	case opQueryPathInfo:
		return d.queryPathInfo(ctx)
	case opQueryAllValidPaths:
		return d.queryAllValidPaths(ctx)
	case opQueryReferrers:
		return d.queryReferrers(ctx)
	case opQueryValidDerivers:
		return d.queryValidDerivers(ctx)
	case opQueryPathFromHashPart:
		return d.queryPathFromHashPart(ctx)
	case opQueryDerivationOutputMap:
		return d.queryDerivationOutputMap(ctx)
	case opQuerySubstitutablePaths, opQuerySubstitutableInfos, opQuerySubstitutablePathInfo:
		return d.querySubstitutable(op)
	case opQueryMissing:
		return d.queryMissing(ctx)
	case opQueryRealisation:
		return d.queryRealisation(ctx)
	case opRegisterDrvOutput:
		return d.registerRealisation(ctx)
	case opNARFromPath:
		return d.narFromPath(ctx)
	case opAddToStoreNAR:
		return d.addToStoreNAR(ctx)
	case opAddMultipleToStore:
		return d.addMultipleToStore(ctx)
	case opAddToStore:
		return d.addToStore(ctx)
	case opAddSignatures:
		return d.addSignatures(ctx)
	case opAddTempRoot:
		return d.addTempRoot(ctx)
	case opAddIndirectRoot:
		return d.addIndirectRoot(ctx)
	case opAddPermRoot:
		return d.addPermRoot(ctx)
	case opFindRoots:
		return d.findRoots(ctx)
	case opSetOptions:
		return d.setOptions()
	case opEnsurePath:
		return d.ensurePath(ctx)
	case opBuildPaths:
		return d.buildPaths(ctx)
	case opBuildPathsWithResults:
		return d.buildPathsWithResults(ctx)
	case opBuildDerivation:
		return d.buildDerivation()
	}
	return d.refuseOther(op)
}

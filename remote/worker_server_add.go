package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// addToStoreNAR takes a path that requests behind it need not wait for.
func (d *daemonServer) addToStoreNAR(ctx context.Context) error {
	info, err := readAddedInfo(d.in, d.dir)
	if err != nil {
		return err
	}
	repair, unchecked := d.in.Bool(), d.in.Bool()
	if err := d.request("add a path"); err != nil {
		return err
	}
	if d.version < workerFramed {
		if err := d.settle(); err != nil { // so that nobody else writes to the client
			return err
		}
	}
	contents := d.contents(info)
	if err := d.mayAdd(ctx, info, repair, unchecked); err != nil {
		return d.refuseNAR(info, err, contents)
	}
	if err := d.out.Flush(); err != nil {
		return err
	}
	add := newServerAdd(info.Path, true)
	if err := d.adds.push(add); err != nil {
		return err
	}
	if err := d.take(ctx, info, contents, add); err != nil && d.version < workerFramed {
		return fmt.Errorf("add %s: %w", info.Path, err)
	}
	return contents.finish()
}

// mayAdd makes the checks that need no contents, and adds ready.
func (d *daemonServer) mayAdd(ctx context.Context, info *nix.PathInfo, repair, unchecked bool) error {
	if err := d.mayWrite("add paths"); err != nil {
		return err
	}
	if repair {
		return errors.New("paths cannot be repaired from afar")
	}
	if check := d.options.Check; check != nil && !(unchecked && d.options.Trust) {
		if err := check(info); err != nil {
			return err
		}
	}
	return d.beginAdds(ctx)
}

// refuseNAR answers in the order of the requests, before the contents are skipped.
func (d *daemonServer) refuseNAR(info *nix.PathInfo, reason error, contents *incomingNAR) error {
	if d.adds == nil {
		d.writeError(d.out, fmt.Errorf("add %s: %w", info.Path, reason))
		if err := d.out.Flush(); err != nil {
			return err
		}
		return contents.finish()
	}
	add := newServerAdd(info.Path, true)
	add.decide(reason)
	if err := d.adds.push(add); err != nil {
		return err
	}
	d.adds.flush()
	return contents.finish()
}

// An incomingNAR is the contents of a path, in the form that the client's version has.
type incomingNAR struct {
	io.Reader
	finish func() error // skips what was not read
}

func (d *daemonServer) contents(info *nix.PathInfo) *incomingNAR {
	switch {
	case d.version >= workerFramed:
		frames := wire.NewFrameReader(d.in)
		return &incomingNAR{frames, func() error {
			_, err := frames.Drain()
			return err
		}}
	case d.since(21):
		return &incomingNAR{&pullReader{d: d}, func() error { return nil }}
	}
	raw := &io.LimitedReader{R: d.in.Raw(), N: info.NARSize}
	return &incomingNAR{raw, func() error {
		_, err := io.Copy(io.Discard, raw)
		return err
	}}
}

// A pullReader asks clients of versions 1.21 and 1.22 for each piece of a NAR.
type pullReader struct {
	d    *daemonServer
	rest string
}

const pullBytes = 64 << 10 // in one piece

func (r *pullReader) Read(p []byte) (int, error) {
	if r.rest == "" {
		out, in := r.d.out, r.d.in
		out.Uint64(stderrRead)
		out.Uint64(pullBytes)
		if r.rest = in.String(pullBytes); in.Err() != nil {
			return 0, in.Err()
		}
		if r.rest == "" {
			return 0, io.ErrUnexpectedEOF
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// addMultipleToStore takes many paths in one substream and answers once.
func (d *daemonServer) addMultipleToStore(ctx context.Context) error {
	repair, unchecked := d.in.Bool(), d.in.Bool()
	if err := d.request("add paths"); err != nil {
		return err
	}
	frames := wire.NewFrameReader(d.in)
	err := d.addGroup(ctx, wire.NewReader(frames), repair, unchecked)
	if _, drainErr := frames.Drain(); drainErr != nil {
		return drainErr
	}
	return d.replyToGroup(err, nothing)
}

// addGroup returns an error of the substream, or of a path that may not be added.
func (d *daemonServer) addGroup(ctx context.Context, r *wire.Reader, repair, unchecked bool) error {
	for range r.Count(wire.MaxPaths) {
		info, err := readAddedInfo(r, d.dir)
		if err != nil {
			return err
		}
		err = d.mayAdd(ctx, info, repair, unchecked)
		if err == nil {
			add := newServerAdd(info.Path, false)
			if err := d.adds.push(add); err != nil {
				return err
			}
			err = d.take(ctx, info, r.Raw(), add)
		}
		if err != nil {
			return fmt.Errorf("add %s: %w", info.Path, err)
		}
	}
	return r.Err()
}

// replyToGroup answers for paths that were added without a word for each.
func (d *daemonServer) replyToGroup(err error, write func(*wire.Writer)) error {
	if settleErr := d.settle(); settleErr != nil {
		return settleErr
	}
	if d.inGroup != nil {
		err = d.inGroup // it is the earlier one
	}
	d.inGroup = nil
	return d.reply(err, write)
}

func (d *daemonServer) addSignatures(ctx context.Context) error {
	p := d.in.Path(d.dir)
	signatures := d.in.Signatures()
	if err := d.request("add signatures"); err != nil {
		return err
	}
	err := d.mayWrite("add signatures")
	if err == nil && d.trust() != Trusted {
		signatures, err = d.verified(ctx, p, signatures)
	}
	if err == nil {
		err = d.store.AddSignatures(ctx, p, signatures)
	}
	return d.reply(err, one)
}

// verified returns those signatures of p that trusted keys have made: a client that is not
// trusted may add no others. It is an error if there are none.
func (d *daemonServer) verified(ctx context.Context, p nix.StorePath, signatures []string) ([]string, error) {
	infos, err := d.backend.PathInfos(ctx, []nix.StorePath{p})
	if err != nil {
		return nil, err
	}
	if len(infos) == 0 {
		return nil, fmt.Errorf("%s: %w", p, nix.ErrNotValid)
	}
	good := slices.DeleteFunc(signatures, func(sig string) bool {
		info := *infos[0]
		info.Signatures = []string{sig}
		return len(d.options.Keys.Signers(&info)) == 0
	})
	if len(good) == 0 {
		return nil, fmt.Errorf("add signatures to %s: none is by a trusted key: %w", p, nix.ErrNotTrusted)
	}
	return good, nil
}

// addTempRoot is content where the session may take none, as a reader's answers are
// worth having, too.
func (d *daemonServer) addTempRoot(ctx context.Context) error {
	p := d.in.Path(d.dir)
	if err := d.request("hold a path"); err != nil {
		return err
	}
	_, err := d.holdValid(ctx, []nix.StorePath{p}, true)
	return d.reply(err, one)
}

func (d *daemonServer) addTempRoots(ctx context.Context) error {
	var failure error
	d.in.EachPaths(d.dir, wire.MaxPaths, func(some []nix.StorePath) {
		if failure == nil {
			_, failure = d.holdValid(ctx, some, true)
		}
	})
	if err := d.request("hold paths"); err != nil {
		return err
	}
	return d.reply(failure, one)
}

func (d *daemonServer) addIndirectRoot(ctx context.Context) error {
	link := d.in.String(wire.MaxPath)
	if err := d.request("add a root"); err != nil {
		return err
	}
	err := d.mayWrite("add roots")
	if d.roots++; err == nil && d.roots > serverMaxAddedRoots && d.trust() != Trusted {
		err = fmt.Errorf("add root %q: an untrusted client may add %d roots in a session", link, serverMaxAddedRoots)
	}
	if err == nil {
		err = d.store.AddIndirectRoot(ctx, link)
	}
	return d.reply(err, one)
}

func (d *daemonServer) addPermRoot(ctx context.Context) error {
	p, link := d.in.Path(d.dir), d.in.String(wire.MaxPath)
	if err := d.request("add a root"); err != nil {
		return err
	}
	err := d.mayWrite("add roots")
	switch {
	case err != nil:
	case d.trust() != Trusted:
		err = fmt.Errorf("add root %q: only a trusted client may make links here", link)
	case !path.IsAbs(link):
		err = fmt.Errorf("add root %q: it is not an absolute path", link)
	default:
		err = d.store.AddRoot(ctx, link, p)
	}
	return d.reply(err, func(w *wire.Writer) { w.String(link) })
}

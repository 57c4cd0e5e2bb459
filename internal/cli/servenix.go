package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/remote"
)

// daemonRefuses reports whether the daemon of this machine is known to take no unsigned
// paths from this user. It is asked in a session of its own: an older one hangs up then.
func daemonRefuses(ctx context.Context, socket string, log *slog.Logger) bool {
	daemon, err := openSocket(ctx, socket, remote.Options{StoreDir: storeDir(), Logger: log})
	if err != nil {
		return false
	}
	defer daemon.Close()
	trust, err := daemon.Trust(ctx)
	return err == nil && trust == remote.NotTrusted
}

// A nixImporter hands paths, which the server has checked, to the Nix that is here.
type nixImporter struct {
	lane    *remote.Lane
	pending sync.WaitGroup // adds that are not decided
}

// Add implements remote.Importer.
func (im *nixImporter) Add(ctx context.Context, info *nix.PathInfo, nar io.Reader, done func(error)) error {
	im.pending.Add(1)
	content := &io.LimitedReader{R: nar, N: info.NARSize}
	err := im.lane.Add(ctx, info, wholeNAR{content}, func(err error) {
		if far, its := errors.Unwrap(err).(*remote.FarError); its { // not of what it was sent
			err = fmt.Errorf("the Nix daemon: %w", far) // the client names the path
		}
		done(err)
		im.pending.Done()
	})
	if err == nil {
		_, err = io.Copy(io.Discard, content) // what a daemon that has refused it did not want
	}
	return err
}

// Flush implements remote.Importer.
func (im *nixImporter) Flush(context.Context) error {
	err := im.lane.Flush()
	im.pending.Wait()
	return err
}

// Close implements remote.Importer.
func (im *nixImporter) Close() error { return im.Flush(context.Background()) }

// A wholeNAR is one that must not end before its announced size.
type wholeNAR struct{ r *io.LimitedReader }

// WriteTo implements io.WriterTo.
func (n wholeNAR) WriteTo(w io.Writer) (int64, error) {
	written, err := io.Copy(w, n.r)
	if err == nil && n.r.N > 0 {
		err = io.ErrUnexpectedEOF
	}
	return written, err
}

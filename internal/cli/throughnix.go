package cli

import (
	"context"
	"io"
	"log/slog"

	"github.com/copy-closure/copy-closure/internal/farend"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/remote"
	"github.com/copy-closure/copy-closure/transport"
)

// A nixHost starts the Nix of this machine, as a far end is started elsewhere.
type nixHost struct{ log *slog.Logger }

// Start implements remote.Host. The program lives until the session is closed or aborted:
// one that ended with the copy that it was opened for would count as failed.
func (h nixHost) Start(ctx context.Context, command string) (io.ReadWriteCloser, error) {
	return startAbortable(context.WithoutCancel(ctx), new(traffic), func(ctx context.Context) (*transport.Session, error) {
		return transport.LocalCommand(ctx, []string{"/bin/sh", "-c", "exec " + command}, nil, h.log)
	})
}

// openNix reaches the Nix of this machine, which keeps its rules: its daemon where
// there is one, else a nix-store that is started.
func openNix(ctx context.Context, choice localstore.Choice, why purpose, log *slog.Logger) (protocolStore, error) {
	o := remote.Options{StoreDir: storeDir(), Logger: log}
	if choice.Socket != "" {
		return openSocket(ctx, choice.Socket, o)
	}
	program, err := farend.LookPath("nix-store")
	if err != nil {
		return nil, err
	}
	end := remote.FarEnd{Program: remote.Quote(program), Store: choice.URI, Access: remote.Write}
	if why == toLook {
		end.Access = remote.Look
	}
	return remote.Open(ctx, nixHost{log}, end, o)
}

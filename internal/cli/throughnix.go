package cli

import (
	"context"
	"io"
	"log/slog"

	"github.com/copy-closure/copy-closure/remote"
	"github.com/copy-closure/copy-closure/transport"
)

// A nixHost starts the Nix of this machine, as a far end is started elsewhere.
type nixHost struct{ log *slog.Logger }

func (h nixHost) Start(ctx context.Context, command string) (io.ReadWriteCloser, error) {
	return startAbortable(ctx, func(ctx context.Context) (*transport.Session, error) {
		return transport.LocalCommand(ctx, []string{"/bin/sh", "-c", "exec " + command}, nil, h.log)
	})
}

// openNix starts the nix-store of this machine, which goes on to its daemon where
// there is one and keeps its rules.
func openNix(ctx context.Context, access remote.Access, uri string, log *slog.Logger) (*remote.Store, error) {
	return remote.Open(ctx, nixHost{log}, remote.FarEnd{
		Program: "nix-store",
		Store:   uri,
		Access:  access,
	}, remote.Options{StoreDir: storeDir(), Logger: log})
}

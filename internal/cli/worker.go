package cli

import (
	"context"
	"fmt"
	"io"
	"net"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/remote"
)

// openWorker starts a daemon's end of the worker protocol at the far end, and for a
// pull a nix-store beside it.
func (r *copyRun) openWorker(ctx context.Context, far *farEnd, end remote.FarEnd, o remote.Options) error {
	daemon, err := remote.OpenDaemonOn(ctx, farHost{far.conn}, end, o)
	if err != nil {
		return err
	}
	far.protocolStore = daemon
	side, ok := end.Side()
	if !r.pull || !ok {
		return nil
	}
	if far.side, err = remote.Open(ctx, farHost{far.conn}, side, o); err != nil {
		r.log.Info("no session for nix-store beside the daemon", "reason", err)
	}
	return nil
}

// openSocket speaks to the daemon of this machine.
func openSocket(ctx context.Context, socket string, o remote.Options) (*remote.Daemon, error) {
	return remote.OpenDaemon(ctx, func(ctx context.Context, _ bool) (io.ReadWriteCloser, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil {
			return nil, fmt.Errorf("the Nix daemon of this machine: %w; start it (systemctl start nix-daemon), or go past it with --store local", err)
		}
		return conn, nil
	}, o)
}

// checkDaemonTrust refuses to send what a daemon would refuse: paths that nobody has
// signed, for a user whom it does not trust. Which keys it trusts cannot be asked.
func checkDaemonTrust(ctx context.Context, daemon *remote.Daemon, where string, infos []*nix.PathInfo) error {
	var unsigned []*nix.PathInfo
	for _, info := range infos {
		if len(info.Signatures) == 0 && (info.CA == "" || info.CheckContentAddress() != nil) {
			unsigned = append(unsigned, info)
		}
	}
	if len(unsigned) == 0 {
		return nil
	}
	trust, err := daemon.Trust(ctx)
	if err != nil || trust != remote.NotTrusted {
		return err
	}
	return &untrustedUserError{where: where, paths: len(unsigned), first: unsigned[len(unsigned)-1].Path}
}

// An untrustedUserError says that a daemon would refuse unsigned paths, before any of
// them is sent. It is nix.ErrNotTrusted.
type untrustedUserError struct {
	where string
	paths int
	first nix.StorePath
}

const untrustedUserRemedies = `Nothing was sent. One of these makes it work:
  - sign what you send: --sign-with FILE (a secret key), and have the key's public half trusted there:
      trusted-public-keys = … NAME:KEY     in /etc/nix/nix.conf
      nix.settings.trusted-public-keys = [ "NAME:KEY" ];     on NixOS
  - have this user trusted there:
      trusted-users = root USER     in /etc/nix/nix.conf
      nix.settings.trusted-users = [ "root" "USER" ];     on NixOS
  - log in as root
Both lines take effect with: systemctl restart nix-daemon
Whoever holds a trusted key's secret half, or is a trusted user, can put any program into that store, and so become root there.`

func (e *untrustedUserError) Error() string {
	what := fmt.Sprintf("%s is neither signed nor content-addressed", e.first)
	if e.paths > 1 {
		what = fmt.Sprintf("%d paths are neither signed nor content-addressed (%s is one)", e.paths, e.first)
	}
	return fmt.Sprintf("the Nix daemon %s does not trust this user, and %s\n%s", e.where, what, untrustedUserRemedies)
}

func (e *untrustedUserError) Unwrap() error { return nix.ErrNotTrusted }

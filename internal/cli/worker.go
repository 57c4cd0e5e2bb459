package cli

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/remote"
	"github.com/copy-closure/copy-closure/transport"
)

// openWorker starts a daemon's end of the worker protocol at the far end, and for a
// pull a nix-store beside it.
func (r *copyRun) openWorker(ctx context.Context, far *farEnd, end remote.FarEnd, o remote.Options) error {
	daemon, err := remote.OpenDaemonOn(ctx, far.farHost, end, o)
	if err != nil {
		return err
	}
	far.protocolStore = daemon
	side, ok := end.Side()
	if !r.pull || !ok {
		return nil
	}
	if far.side, err = remote.Open(ctx, far.farHost, side, o); err != nil {
		r.log.Info("no session for nix-store beside the daemon", "reason", err)
	}
	return nil
}

// openSocket speaks to the daemon of this machine.
func openSocket(ctx context.Context, socket string, o remote.Options) (*remote.Daemon, error) {
	return remote.OpenDaemon(ctx, func(ctx context.Context, _ bool) (io.ReadWriteCloser, error) {
		conn, err := transport.DialUnix(ctx, socket)
		if err != nil {
			return nil, fmt.Errorf("the Nix daemon of this machine: %w; start it (systemctl start nix-daemon), or go past it with --store local", err)
		}
		return conn, nil
	}, o)
}

// A trustTeller knows whether a daemon trusts its user: one itself, or our server in
// front of one.
type trustTeller interface {
	Trust(ctx context.Context) (remote.Trust, error)
}

// checkDaemonTrust refuses to send what a daemon would refuse: paths that nobody has
// signed, for a user whom it does not trust. Which keys it trusts cannot be asked.
func checkDaemonTrust(ctx context.Context, daemon trustTeller, where string, infos []*nix.PathInfo) error {
	unsigned := unvouched(infos)
	if len(unsigned) == 0 {
		return nil
	}
	trust, err := daemon.Trust(ctx)
	if err != nil {
		return err
	}
	return refuseUntrusted(trust, where, unsigned)
}

// unvouched returns those of infos for which neither a signature nor a content address
// speaks.
func unvouched(infos []*nix.PathInfo) (unsigned []*nix.PathInfo) {
	for _, info := range infos {
		if len(info.Signatures) == 0 && !info.ContentAddressed() {
			unsigned = append(unsigned, info)
		}
	}
	return unsigned
}

func refuseUntrusted(trust remote.Trust, where string, unsigned []*nix.PathInfo) error {
	if trust != remote.NotTrusted || len(unsigned) == 0 {
		return nil
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

// signThere adds signatures of --sign-with to paths that a daemon had already, where
// they are the same as ours. That it cannot be done is no reason to fail.
func (r *copyRun) signThere(ctx context.Context, plan *closure.Plan, e ends) error {
	target, ok := e.target.(daemonTarget)
	if !ok || len(r.signWith) == 0 || len(plan.Present) == 0 {
		return nil
	}
	unsigned, err := r.missingSignatures(ctx, plan.Present, e.source, target.daemon)
	if err != nil {
		return err
	}
	if err := target.daemon.AddSignatures(ctx, unsigned); err != nil {
		r.log.Warn("paths that were there already were not signed there", "paths", len(unsigned), "reason", err)
	}
	return nil
}

// missingSignatures returns infos of paths with the signatures that the daemon lacks.
func (r *copyRun) missingSignatures(ctx context.Context, paths []nix.StorePath, source closure.Source, daemon *remote.Daemon) ([]*nix.PathInfo, error) {
	ours, err := source.PathInfos(ctx, paths)
	if err != nil {
		return nil, err
	}
	if err := signInFlight(ours, r.signWith); err != nil {
		return nil, err
	}
	there, err := daemon.PathInfos(ctx, paths)
	if err != nil {
		return nil, err
	}
	known := make(map[nix.StorePath]*nix.PathInfo, len(there))
	for _, info := range there {
		known[info.Path] = info
	}
	var unsigned []*nix.PathInfo
	for _, info := range ours {
		theirs := known[info.Path]
		if theirs == nil || theirs.NARHash != info.NARHash {
			continue // a signature of other contents would be worth nothing
		}
		info.Signatures = slices.DeleteFunc(info.Signatures, func(sig string) bool { return slices.Contains(theirs.Signatures, sig) })
		if len(info.Signatures) > 0 {
			unsigned = append(unsigned, info)
		}
	}
	return unsigned, nil
}

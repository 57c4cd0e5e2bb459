package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/copy-closure/copy-closure/internal/farend"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/remote"
)

// serveCommand is the far end of a copy.
func (p *program) serveCommand() *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "serve a store on standard input and output",
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "read-only", Usage: "others may copy from the store and change nothing (default)"},
			&cli.BoolFlag{Name: "write", Usage: "others may add paths that a trusted key has signed"},
			&cli.BoolFlag{Name: "trust-client", Usage: "with --write: and others"},
			&cli.BoolFlag{Name: "daemon-protocol", Usage: "speak as nix-daemon --stdio, not as nix-store --serve"},
			storeFlag,
		}, logFlags...),
		Action: func(c *cli.Context) error {
			if err := p.setOutput(c); err != nil {
				return err
			}
			r := serveRequest{store: c.String("store"), write: c.Bool("write"), trust: c.Bool("trust-client"), daemon: c.Bool("daemon-protocol")}
			switch {
			case c.NArg() > 0:
				return usagef("serve takes no arguments, only options")
			case r.write && c.Bool("read-only"):
				return usagef("--read-only and --write exclude each other")
			case r.trust && !r.write:
				return usagef("--trust-client says whose paths --write takes; it needs --write")
			}
			asked := os.Getenv("SSH_ORIGINAL_COMMAND")
			if err := p.tellForced(asked, r); err != nil {
				return err
			}
			r.daemon = r.daemon || asksForDaemon(asked)
			if peerWish() == remote.PeerJoins {
				return remote.JoinLane(os.Stdin, os.Stdout)
			}
			return p.serve(c.Context, r)
		},
	}
}

// A serveRequest says what a client may do.
type serveRequest struct {
	store string
	write bool
	trust bool // take unsigned paths, too

	daemon bool // in the worker protocol
}

// asksForDaemon reports whether a client behind a forced command wants the worker
// protocol.
func asksForDaemon(asked string) bool {
	return strings.Contains(asked, "nix-daemon") && strings.Contains(asked, "--stdio") ||
		strings.Contains(asked, "--daemon-protocol")
}

// tellForced is for a forced command in authorized_keys: what the client asked for
// may choose the protocol and nothing else.
func (p *program) tellForced(asked string, r serveRequest) error {
	if asked == "" {
		return nil
	}
	if !strings.Contains(asked, "serve") && !asksForDaemon(asked) {
		return fmt.Errorf("this account serves its store and runs no other command")
	}
	ignored := []struct {
		option string
		given  bool
	}{{"--write", r.write}, {"--trust-client", r.trust}, {"--store", false}}
	for _, o := range ignored {
		if strings.Contains(asked, o.option) && !o.given {
			p.log.Info("the forced command of this account decides: ignored", "option", o.option)
		}
	}
	return nil
}

// runAsNixStore stands in for nix-store --serve [--write] [--store URI], and
// behaves as it does: whoever may start it may add what he likes.
func (p *program) runAsNixStore(ctx context.Context, args []string) error {
	if peerWish() == remote.PeerJoins {
		return remote.JoinLane(os.Stdin, os.Stdout)
	}
	r := serveRequest{store: "auto", trust: true}
	serving := false
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; {
		case arg == "--serve":
			serving = true
		case arg == "--write":
			r.write = true
		case arg == "--store" && i+1 < len(args):
			i++
			r.store = args[i]
		case arg == "-v" || arg == "--verbose":
		default:
			return usagef("as nix-store this program knows only --serve [--write] [--store URI], not %q", arg)
		}
	}
	if !serving {
		return usagef("as nix-store this program knows only --serve [--write] [--store URI]")
	}
	return p.serve(ctx, r)
}

// runAsNixDaemon stands in for nix-daemon --stdio [--store URI]: whoever may start it
// may add what a trusted key has signed, and what he asks to have taken unsigned.
func (p *program) runAsNixDaemon(ctx context.Context, args []string) error {
	const usage = "as nix-daemon this program knows only --stdio [--store URI] [--force-trusted|--force-untrusted]"
	r := serveRequest{store: "auto", write: true, trust: true, daemon: true}
	stdio := false
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; {
		case arg == "--stdio":
			stdio = true
		case arg == "--store" && i+1 < len(args):
			i++
			r.store = args[i]
		case arg == "--force-untrusted":
			r.trust = false
		case arg == "--force-trusted", arg == "--default-trust", arg == "--process-ops", arg == "-v", arg == "--verbose":
		default:
			return usagef("%s, not %q", usage, arg)
		}
	}
	if !stdio {
		return usagef("%s", usage)
	}
	return p.serve(ctx, r)
}

// serve answers one client.
func (p *program) serve(ctx context.Context, r serveRequest) error {
	leaveProcessors()
	why := toRead
	if r.write {
		why = toWrite
	}
	choice, err := p.choose(r.store)
	if err != nil {
		return err
	}
	nixDecides := choice.ThroughNix && r.write && r.trust
	if nixDecides && (r.daemon || choice.Socket == "" || peerWish() != remote.PeerAsks) {
		return farend.ServeThroughNix(r.daemon, r.write, choice.URI)
	}
	check := func(*nix.PathInfo) error { return nil }
	if !r.trust || r.daemon {
		if check, err = p.acceptance(); err != nil {
			return err
		}
	}
	b, err := p.openBackend(ctx, r.store, why)
	if (nixDecides || !r.write && !r.daemon) && errors.Is(err, errUnreadable) {
		return farend.ServeThroughNix(r.daemon, r.write, choice.URI)
	}
	stream, streamErr := remote.StandardStreams()
	if streamErr != nil {
		return streamErr
	}
	if errors.Is(err, localstore.ErrNoStore) && !r.write {
		return remote.Serve(ctx, stream, remote.NoStore{Dir: storeDir()}, remote.ServerOptions{Logger: p.log})
	}
	if err != nil {
		return err
	}
	defer b.local.close()
	b.local.store.LimitTempRoots(remote.SessionTempRoots)
	options := remote.ServerOptions{
		Write:   r.write,
		Hold:    true,
		Check:   check,
		Vouched: vouchedBy(check),
		Trust:   r.trust,
		InOrder: b.local.nix != nil,
		Atomic:  b.local.nix == nil,
		Room:    b.local.room,
		Window:  allowWindow,
		Logger:  p.log,

		Foresees:    b.local.nix == nil,
		Plans:       os.Getenv(remote.PlanVariable) == "1" && os.Getenv("SSH_ORIGINAL_COMMAND") == "",
		Substituter: &serverSubstituter{program: p, local: b.local},
	}
	if r.daemon {
		if options.Keys, err = configuredKeys(); err != nil {
			return err
		}
		return remote.ServeDaemon(ctx, stream, b, options)
	}
	if peerWish() == remote.PeerAsks {
		options.Peer = true
		options.Untrusted = nixDecides && daemonRefuses(ctx, choice.Socket, p.log)
		if m, err := remote.NewMeeting(); err == nil {
			options.Meeting = m
			defer m.Close()
		} else {
			p.log.Debug("further sessions cannot join this one", "error", err)
		}
	}
	return remote.Serve(ctx, stream, b, options)
}

// vouchedBy returns whether a path would be accepted without its content address, which
// says nothing of a NAR before that has come to its end.
func vouchedBy(check func(*nix.PathInfo) error) func(*nix.PathInfo) bool {
	return func(info *nix.PathInfo) bool {
		bare := *info
		bare.CA = ""
		return check(&bare) == nil
	}
}

// peerWish is what a client of ours wants: its start script says so, or would if a
// forced command had not come in its place.
func peerWish() string {
	if wish := os.Getenv(remote.PeerVariable); wish != "" {
		return wish
	}
	_, wish, _ := strings.Cut(os.Getenv("SSH_ORIGINAL_COMMAND"), remote.PeerVariable+"=")
	return wish[:len(wish)-len(strings.TrimLeft(wish, "0123456789abcdefghijklmnopqrstuvwxyz"))]
}

// A backend is the store of this end as the server wants it.
type backend struct {
	*localstore.Store
	local *localEnd
}

var errUnreadable = errors.New("serve: the store cannot be read by this user")

// openBackend opens the store for serving.
func (p *program) openBackend(ctx context.Context, uri string, why purpose) (*backend, error) {
	local, err := p.openLocal(ctx, uri, why)
	if err != nil {
		return nil, err
	}
	if local.store == nil {
		return nil, errors.Join(errUnreadable, local.close())
	}
	return &backend{local.store, local}, nil
}

// OpenArchive implements remote.BaseBackend.
func (b *backend) OpenArchive(ctx context.Context, p nix.StorePath) (remote.Archive, error) {
	return b.Store.OpenArchive(ctx, p)
}

// PathOfHashPart implements remote.DaemonBackend.
func (b *backend) PathOfHashPart(ctx context.Context, part string) (nix.StorePath, error) {
	info, err := b.PathInfoFromHashPart(ctx, part)
	if errors.Is(err, nix.ErrNotValid) {
		return nix.StorePath{}, nil
	}
	if err != nil {
		return nix.StorePath{}, err
	}
	return info.Path, nil
}

// AddSignatures implements remote.DaemonBackend.
func (b *backend) AddSignatures(ctx context.Context, p nix.StorePath, signatures []string) error {
	_, err := b.Store.AddSignatures(ctx, p, signatures)
	return err
}

// Hold implements remote.Backend.
func (b *backend) Hold(ctx context.Context, paths []nix.StorePath) error {
	return b.local.source.(directSource).Hold(ctx, paths)
}

// Import implements remote.Backend.
func (b *backend) Import(ctx context.Context) (remote.Importer, error) {
	if b.local.nix == nil {
		return b.local.takeWriter(), nil
	}
	lane, err := b.local.nix.OpenLane(ctx)
	if err != nil {
		return nil, err
	}
	return &nixImporter{lane: lane}, nil
}

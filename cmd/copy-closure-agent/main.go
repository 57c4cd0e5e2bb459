// The agent is copy-closure without what only the near end of a copy needs: it serves
// a store on standard input and output. It is what is uploaded to a machine that has
// neither copy-closure nor Nix.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"

	"github.com/copy-closure/copy-closure/internal/farend"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/show"
	"github.com/copy-closure/copy-closure/internal/version"
	"github.com/copy-closure/copy-closure/remote"
)

// As in copy-closure: little is alive at any time.
const (
	gcPercent   = 400
	memoryLimit = 40 << 20 // bytes
)

func main() {
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	farend.SetUmask()
	err := farend.CheckLoop()
	if err == nil {
		err = run(context.Background(), os.Args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", show.Indented(err.Error()))
		os.Exit(1)
	}
}

const usage = `serve [--read-only|--write --trust-client] [--store URI]
store add-root LINK PATH [--store URI]
store set-profile PROFILE PATH [--store URI]
profile rollback --generation N PROFILE [--store URI]`

// A request is the command line, of which copy-closure at the other end is the only
// author.
type request struct {
	words        []string
	store        string
	generation   int
	write, trust bool
}

func parse(args []string) (request, error) {
	r := request{store: "auto"}
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; {
		case arg == "--write":
			r.write = true
		case arg == "--trust-client":
			r.trust = true
		case arg == "--read-only":
		case arg == "--serve": // as nix-store, which asks nobody for signatures
			r.words, r.trust = []string{"serve"}, true
		case arg == "--store" && i+1 < len(args):
			i++
			r.store = args[i]
		case arg == "--generation" && i+1 < len(args):
			i++
			var err error
			if r.generation, err = strconv.Atoi(args[i]); err != nil {
				return r, err
			}
		case arg != "" && arg[0] != '-':
			r.words = append(r.words, arg)
		default:
			return r, fmt.Errorf("unknown option %q; there are\n%s", arg, usage)
		}
	}
	return r, nil
}

func run(ctx context.Context, args []string) error {
	if len(args) == 1 && args[0] == "--version" { // to find out whether it may be started
		fmt.Printf("copy-closure-agent %s (%s)\n", version.String(), remote.Protocols())
		return nil
	}
	r, err := parse(args)
	if err != nil {
		return err
	}
	w := r.words
	switch {
	case len(w) == 1 && w[0] == "serve" && os.Getenv(remote.PeerVariable) == remote.PeerJoins:
		return remote.JoinLane(os.Stdin, os.Stdout)
	case len(w) == 1 && w[0] == "serve":
		return r.serve(ctx)
	case len(w) == 4 && w[0] == "store" && (w[1] == "add-root" || w[1] == "set-profile"):
		return r.addRoot(ctx, w[1], w[2], w[3])
	case len(w) == 3 && w[0] == "profile" && w[1] == "rollback" && r.generation > 0:
		return r.switchGeneration(ctx, w[2])
	}
	return fmt.Errorf("usage:\n%s", usage)
}

// serve answers one client. It trusts him: he has a shell here, and could do as he
// likes anyway.
func (r request) serve(ctx context.Context) error {
	if r.write && !r.trust {
		return errors.New("the agent knows no keys: it serves --write only with --trust-client")
	}
	choice, err := farend.Choose(r.store)
	if err != nil {
		return err
	}
	if choice.ThroughNix && (r.write || choice.Opaque) {
		return farend.ServeThroughNix(false, r.write, choice.URI)
	}
	stream, err := remote.StandardStreams()
	if err != nil {
		return err
	}
	b, err := openBackend(ctx, choice.Config, r.write)
	if errors.Is(err, localstore.ErrNoStore) && !r.write {
		return remote.Serve(ctx, stream, remote.NoStore{Dir: choice.Config.StoreDir}, remote.ServerOptions{})
	}
	if err != nil {
		return err
	}
	defer b.Close()
	b.LimitTempRoots(remote.SessionTempRoots)
	options := remote.ServerOptions{
		Write:  r.write,
		Hold:   true,
		Atomic: true,
		Peer:   os.Getenv(remote.PeerVariable) == remote.PeerAsks,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	if meeting, err := remote.NewMeeting(); err == nil && options.Peer {
		options.Meeting = meeting
		defer meeting.Close()
	}
	return remote.Serve(ctx, stream, b, options)
}

// A backend is the store of this machine as the server wants it.
type backend struct{ *localstore.Store }

// openBackend opens the store. A writer makes it where there is none.
func openBackend(ctx context.Context, c localstore.Config, write bool) (backend, error) {
	open := localstore.Open
	if write {
		open = localstore.OpenOrCreate
	}
	c.ReadOnly = !write
	store, err := open(ctx, c)
	return backend{store}, err
}

// Hold implements remote.Backend. A reader who may not take temporary roots goes
// without.
func (b backend) Hold(ctx context.Context, paths []nix.StorePath) error {
	if err := b.Store.Hold(ctx, paths); !errors.Is(err, localstore.ErrReadOnly) {
		return err
	}
	return nil
}

// OpenArchive implements remote.BaseBackend.
func (b backend) OpenArchive(ctx context.Context, p nix.StorePath) (remote.Archive, error) {
	return b.Store.OpenArchive(ctx, p)
}

// Import implements remote.Backend.
func (b backend) Import(context.Context) (remote.Importer, error) {
	return b.NewImport(localstore.ImportOptions{}), nil
}

// open opens the store that is there already.
func (r request) open(ctx context.Context) (*localstore.Store, error) {
	choice, err := farend.Choose(r.store)
	if err == nil && choice.Strict {
		err = fmt.Errorf("store %q: the agent cannot use it; Nix does", choice.URI)
	}
	if err != nil {
		return nil, err
	}
	return localstore.Open(ctx, choice.Config)
}

// addRoot keeps a path from garbage collection, by a link or as a generation.
func (r request) addRoot(ctx context.Context, how, name, path string) (err error) {
	s, err := r.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	p, _, err := s.Resolve(ctx, path)
	if err != nil {
		return err
	}
	if how == "add-root" {
		return s.AddRoot(ctx, name, p)
	}
	_, err = s.SetProfile(ctx, name, p)
	return err
}

// switchGeneration makes a profile lead to another of its generations.
func (r request) switchGeneration(ctx context.Context, profile string) error {
	s, err := r.open(ctx)
	if err != nil {
		return err
	}
	return errors.Join(s.SwitchGeneration(ctx, profile, r.generation), s.Close())
}

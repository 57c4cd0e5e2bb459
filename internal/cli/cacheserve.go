package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixconf"
	"github.com/copy-closure/copy-closure/internal/ui"
	"github.com/copy-closure/copy-closure/substitute"
)

// cacheMemory is what a server of a cache may use before the collector works harder.
const cacheMemory = 96 << 20 // bytes

// cacheServeCommand serves a cache over HTTP.
func (p *program) cacheServeCommand() *cli.Command {
	return &cli.Command{
		Name: "serve", ArgsUsage: "[DIR]",
		Usage: "serve a store, or a cache in DIR, over HTTP",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "listen", Value: "127.0.0.1:8080", Usage: "listen on `ADDR`, host:port; port 0 takes any"},
			&cli.StringFlag{Name: "store", Value: "auto", Usage: "the live store to serve: auto, local, `URI` or /DIR"},
			&cli.IntFlag{Name: "priority", Value: 30, Usage: "`N` of a live store among a client's caches; lower is asked first"},
			&cli.StringSliceFlag{Name: "sign-with", Usage: "sign with the secret key in `FILE` what this machine vouches for (repeatable)"},
			&cli.BoolFlag{Name: "sign-all", Usage: "sign everything in the store, wherever it came from"},
			&cli.StringFlag{Name: "compress", Value: "zstd", Usage: "`HOW` a live store may be compressed for clients: zstd or none"},
			&cli.StringFlag{Name: "url", Usage: "the `URL` by which clients know the cache, for the page (default: as the browser does)"},
			&cli.StringSliceFlag{Name: "public-key", Usage: "show `KEY` on the page besides those of --sign-with (repeatable)"},
			&cli.BoolFlag{Name: "listing", Usage: "let people look for paths on the page"},
			&cli.StringFlag{Name: "tls-cert", Usage: "certificate chain for HTTPS, a `FILE` that is read again when it changes"},
			&cli.StringFlag{Name: "tls-key", Usage: "`FILE` with its key"},
			&cli.IntFlag{Name: "max-transfers", Value: substitute.DefaultTransfers, Usage: "send the contents of `N` paths at once; further clients wait"},
			&cli.DurationFlag{Name: "grace", Value: 30 * time.Second, Usage: "give requests that are under way `TIME` when the server is told to stop"},
			&cli.BoolFlag{Name: "access-log", Usage: "write a line for each request; -v does so, too"},
		}, logFlags...),
		Action: p.cacheServe,
	}
}

func (p *program) cacheServe(c *cli.Context) error {
	if err := p.setOutput(c); err != nil {
		return err
	}
	r, err := parseCacheServe(c)
	if err != nil {
		return err
	}
	debug.SetMemoryLimit(cacheMemory)
	server, closeStore, err := p.cacheServer(c, r)
	if err != nil {
		return err
	}
	defer closeStore()
	var config *tls.Config
	scheme := "http"
	if cert := c.String("tls-cert"); cert != "" {
		key := c.String("tls-key")
		if config, err = substitute.Certificate(cert, key); err == nil {
			err = checkTLSKey(key)
		}
		if err != nil {
			return err
		}
		scheme = "https"
	}
	l, err := listen(c.Context, c.String("listen"))
	if err != nil {
		return err
	}
	if !c.Bool("quiet") {
		fmt.Fprintf(p.screen, "listening on %s://%s\n", scheme, l.Addr())
	}
	return server.Serve(c.Context, l, config, c.Duration("grace"))
}

// A cacheServeRequest says what is served, after the flags agree with each other.
type cacheServeRequest struct {
	dir  substitute.Dir // empty: a live store
	keys []nix.SecretKey
	zstd bool
	page substitute.ServerOptions
}

func parseCacheServe(c *cli.Context) (r cacheServeRequest, err error) {
	if r.dir, err = cacheDir(c); err != nil {
		return r, err
	}
	if r.dir != "" {
		for _, name := range []string{"priority", "sign-with", "sign-all", "compress"} {
			if c.IsSet(name) {
				return r, usagef("--%s is for a live store; a cache in a directory is served as it was made", name)
			}
		}
	}
	switch compress := c.String("compress"); {
	case compress != "zstd" && compress != "none":
		return r, usagef("--compress is zstd or none, not %q", compress)
	case c.Bool("sign-all") && !c.IsSet("sign-with"):
		return r, usagef("--sign-all says what --sign-with signs; it needs --sign-with")
	case (c.String("tls-cert") == "") != (c.String("tls-key") == ""):
		return r, usagef("--tls-cert and --tls-key need each other")
	case c.Int("max-transfers") < 1:
		return r, usagef("--max-transfers must be at least 1")
	}
	r.zstd = c.String("compress") == "zstd"
	r.page = substitute.ServerOptions{URL: strings.TrimSuffix(c.String("url"), "/"), Listing: c.Bool("listing"), Transfers: c.Int("max-transfers")}
	for _, file := range c.StringSlice("sign-with") {
		key, err := readSecretKey(file)
		if err != nil {
			return r, err
		}
		r.keys = append(r.keys, key)
		r.page.PublicKeys = append(r.page.PublicKeys, key.Public())
	}
	for _, text := range c.StringSlice("public-key") {
		key, err := nix.ParsePublicKey(text)
		if err != nil {
			return r, usagef("--public-key: %v", err)
		}
		r.page.PublicKeys = append(r.page.PublicKeys, key)
	}
	return r, nil
}

// cacheDir is the directory that is served, or empty for a live store.
func cacheDir(c *cli.Context) (substitute.Dir, error) {
	name, isFile := strings.CutPrefix(c.String("store"), "file://")
	switch {
	case c.NArg() > 1:
		return "", usagef("say %s cache serve [DIR]", c.App.Name)
	case c.NArg() == 1 && c.IsSet("store"):
		return "", usagef("serve either the cache in a directory or the live store of --store")
	case c.NArg() == 1:
		name = strings.TrimPrefix(c.Args().First(), "file://")
	case !isFile:
		return "", nil
	}
	path, err := filepath.Abs(name)
	return substitute.Dir(path), err
}

// cacheServer opens what is served.
func (p *program) cacheServer(c *cli.Context, r cacheServeRequest) (_ *substitute.Server, closeStore func() error, err error) {
	r.page.Logger = p.log
	if c.Bool("access-log") || c.Count("verbose") > 0 {
		r.page.AccessLog = slog.New(ui.NewLogHandler(p.screen, "", slog.LevelInfo))
	}
	if r.dir != "" {
		server, err := substitute.NewDirServer(r.dir, r.page)
		return server, func() error { return nil }, err
	}
	conf, err := nixconf.Load(os.LookupEnv)
	if err != nil {
		return nil, nil, err
	}
	trusted, err := conf.TrustedKeys()
	if err != nil {
		return nil, nil, err
	}
	local, err := p.openDirectly(c.Context, c.String("store"), toRead)
	if err != nil {
		return nil, nil, err
	}
	options := substitute.StoreOptions{
		Priority: c.Int("priority"), Zstd: r.zstd,
		Sign: substitute.Signer{Keys: r.keys, Trusted: trusted, All: c.Bool("sign-all")},
	}
	if local.store == nil {
		return nil, nil, errors.Join(fmt.Errorf("serve a cache: the store %s can only be used through Nix, and not be served", c.String("store")), local.close())
	}
	return substitute.NewStoreServer(servedStore{local.store}, options, r.page), local.close, nil
}

// A servedStore is a store of this machine as a server of a cache wants it.
type servedStore struct{ *localstore.Store }

// HoldUntil implements substitute.ServedStore: where this user may take no temporary
// roots, there are none, and a path may be deleted while it is sent.
func (s servedStore) HoldUntil(ctx context.Context, path nix.StorePath) (release func() error, err error) {
	release, err = s.Store.HoldUntil(ctx, path)
	if errors.Is(err, localstore.ErrReadOnly) {
		return func() error { return nil }, nil
	}
	return release, err
}

// listen takes the socket that systemd has opened for us, or opens one.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	const firstFD = 3 // as sd_listen_fds says
	if os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) && os.Getenv("LISTEN_FDS") != "" {
		if n := os.Getenv("LISTEN_FDS"); n != "1" {
			return nil, fmt.Errorf("LISTEN_FDS is %q: exactly one socket can be served", n)
		}
		f := os.NewFile(firstFD, "LISTEN_FDS")
		defer f.Close()
		return net.FileListener(f)
	}
	var config net.ListenConfig
	return config.Listen(ctx, "tcp", addr)
}

package localstore

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A Choice says which store --store means, and how it is to be used.
type Choice struct {
	Config     Config
	ThroughNix bool   // written through the Nix that is here; Config may still be read
	URI        string // for that Nix; empty: its default
	Socket     string // of its daemon; empty: a nix-store is started
	Reason     string // for people
}

// Through names what a store is written through.
func (c Choice) Through() string {
	if c.Socket != "" {
		return c.Socket
	}
	return "nix-store"
}

// Facts are what the choice depends on. Gather finds all but HaveNix.
type Facts struct {
	Getenv        func(string) string
	HaveDatabase  bool   // the state directory of Nix holds a database
	HaveNix       bool   // Nix's own nix-store is in PATH
	Socket        string // of the daemon
	HaveSocket    bool   // which listens
	StateWritable bool   // this user may write the database
	StoreWritable bool   // and the directory of contents: not where it is mounted read-only
}

// Gather looks at this machine.
func Gather(getenv func(string) string) Facts {
	c := machine(getenv)
	socket := getenv("NIX_DAEMON_SOCKET_PATH")
	if socket == "" {
		socket = c.state("daemon-socket/socket")
	}
	return Facts{
		Getenv:        getenv,
		HaveDatabase:  exists(c.state("db/db.sqlite")),
		Socket:        socket,
		HaveSocket:    exists(socket),
		StateWritable: unix.Access(c.state("db"), unix.W_OK) == nil,
		StoreWritable: unix.Access(c.RealDir, unix.W_OK) == nil,
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// machine is the store of this machine, as Nix's environment variables place it.
func machine(getenv func(string) string) Config {
	c := Under("")
	if dir := getenv("NIX_STORE_DIR"); dir != "" {
		c.StoreDir, c.RealDir = nix.StoreDir(dir), dir
	}
	if dir := getenv("NIX_STATE_DIR"); dir != "" {
		c.StateDir = dir
	}
	if dir := getenv("NIX_LOG_DIR"); dir != "" {
		c.LogDir = dir
	}
	return c
}

// Choose decides what the value of --store means where the facts hold: auto, local,
// daemon, unix://SOCKET, /DIR, or local?root=/DIR with Nix's further parameters.
func (f Facts) Choose(uri string) (Choice, error) {
	if uri == "" || uri == "auto" {
		return f.auto()
	}
	base, query, _ := strings.Cut(uri, "?")
	switch {
	case strings.HasPrefix(uri, "/"):
		return Choice{Config: Under(filepath.Clean(uri)), Reason: "it was named"}, nil
	case base == "local":
		return f.local(uri, query)
	case base == "daemon", base == "unix://":
		return f.throughDaemon(uri, f.Socket, "it was asked for"), nil
	case strings.HasPrefix(base, "unix:///"):
		return f.throughDaemon(uri, strings.TrimPrefix(base, "unix://"), "it was asked for"), nil
	}
	return Choice{}, fmt.Errorf("store %q is none that this end can be: it is auto, local, daemon, unix://SOCKET, /DIR or local?root=/DIR", uri)
}

// auto does what Nix does where there is a Nix, and else takes a store of our own.
func (f Facts) auto() (Choice, error) {
	if remote := f.Getenv("NIX_REMOTE"); remote != "" && remote != "auto" {
		return f.Choose(remote)
	}
	c := machine(f.Getenv)
	switch {
	case !f.HaveDatabase && !f.HaveNix:
		return Choice{Config: f.embedded(), Reason: "there is no Nix on this machine"}, nil
	case f.HaveSocket:
		return f.throughDaemon("", f.Socket, "a Nix daemon runs here"), nil
	case f.StateWritable && f.StoreWritable:
		return Choice{Config: c, Reason: "the store may be written and no Nix daemon runs"}, nil
	case f.HaveNix:
		return Choice{Config: c, ThroughNix: true, Reason: "this user may not write the store"}, nil
	}
	return Choice{Config: c, Reason: "there is a store, and neither a Nix daemon nor nix-store"}, nil
}

// embedded is the store of a user whose machine has no Nix.
func (f Facts) embedded() Config {
	data := f.Getenv("XDG_DATA_HOME")
	if data == "" {
		data = filepath.Join(f.Getenv("HOME"), ".local/share")
	}
	return Under(filepath.Join(data, "copy-closure"))
}

// throughDaemon speaks to a daemon's socket. Nobody need have nix-store for that.
func (f Facts) throughDaemon(uri, socket, reason string) Choice {
	return Choice{Config: machine(f.Getenv), ThroughNix: true, URI: uri, Socket: socket, Reason: reason}
}

// local reads the parameters of a store that is used directly.
func (f Facts) local(uri, query string) (Choice, error) {
	c := machine(f.Getenv)
	values, err := url.ParseQuery(query)
	if err != nil {
		return Choice{}, fmt.Errorf("store %q: %w", uri, err)
	}
	if root := values.Get("root"); root != "" {
		c = Under(root)
	}
	for key, list := range values {
		value := list[len(list)-1]
		switch key {
		case "root":
		case "store":
			c.StoreDir = nix.StoreDir(value)
			if !values.Has("real") && !values.Has("root") {
				c.RealDir = value
			}
		case "real":
			c.RealDir = value
		case "state":
			c.StateDir = value
		case "log":
			c.LogDir = value
		default:
			return Choice{}, fmt.Errorf("store %q: unknown parameter %q: there are root, store, real, state and log", uri, key)
		}
	}
	return Choice{Config: c, Reason: "it was named"}, c.check()
}

package localstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixconf"
)

// A Choice says which store --store means, and how it is to be used.
type Choice struct {
	Config     Config
	ThroughNix bool   // written through the Nix that is here; Config may still be read
	URI        string // for that Nix; empty: its default
	Socket     string // of its daemon; empty: a nix-store is started
	// Opaque says that Config must not be read: the store behind Socket may be another
	// one, or Nix locks its database in a way of its own.
	Opaque bool
	// Strict says that nothing goes past that Nix: its daemon was named.
	Strict bool
	// RequireSigs is the parameter require-sigs; nil where nobody has set it.
	RequireSigs *bool
	Reason      string // for people
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
	Home          string // directory of the user
	HaveState     bool   // the state directory of Nix exists
	HaveDatabase  bool   // and holds a database
	HaveNix       bool   // Nix's own nix-store is in PATH
	Socket        string // of the daemon
	HaveSocket    bool   // which listens
	StateWritable bool   // this user may write the database, or make it
	StoreWritable bool   // and the directory of contents: not where it is mounted read-only
	Default       string // the URI of the configuration; empty: auto
	// AllowSymlinks lets the directory of contents, or one above it, be a symbolic link.
	AllowSymlinks bool
}

// Gather looks at this machine.
func Gather(env nixconf.Environment) (Facts, error) {
	conf, err := nixconf.Load(env)
	if err != nil {
		return Facts{}, err
	}
	getenv := func(name string) string { value, _ := env(name); return value }
	c := machine(getenv)
	socket := getenv("NIX_DAEMON_SOCKET_PATH")
	if socket == "" {
		socket = c.socket()
	}
	return Facts{
		Getenv:        getenv,
		Home:          nixconf.Home(env),
		HaveState:     exists(c.StateDir),
		HaveDatabase:  exists(c.state("db/db.sqlite")),
		Socket:        socket,
		HaveSocket:    exists(socket),
		StateWritable: writable(c.state("db")),
		StoreWritable: writable(c.RealDir),
		Default:       conf.Store(),
		AllowSymlinks: conf.AllowSymlinkedStore(),
	}, nil
}

// writable reports whether this user may write a directory, or make it where it is
// missing.
func writable(dir string) bool {
	for !exists(dir) && dir != "/" {
		dir = filepath.Dir(dir)
	}
	return unix.Access(dir, unix.W_OK) == nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// StoreDir returns the logical store directory that NIX_STORE_DIR, or NIX_STORE, says.
func StoreDir(getenv func(string) string) nix.StoreDir {
	for _, name := range []string{"NIX_STORE_DIR", "NIX_STORE"} {
		if dir := getenv(name); dir != "" {
			return nix.StoreDir(filepath.Clean(dir))
		}
	}
	return nix.DefaultStoreDir
}

// machine is the store of this machine, as Nix's environment variables place it.
func machine(getenv func(string) string) Config {
	c := Under("")
	c.StoreDir = StoreDir(getenv)
	c.RealDir = string(c.StoreDir)
	if dir := getenv("NIX_STATE_DIR"); dir != "" {
		c.StateDir = dir
	}
	if dir := getenv("NIX_LOG_DIR"); dir != "" {
		c.LogDir = dir
	}
	return c
}

// socket is where the daemon of a store listens.
func (c Config) socket() string { return c.state("daemon-socket/socket") }

// Choose decides what the value of --store means where the facts hold. Auto is the store
// of the configuration.
func (f Facts) Choose(uri string) (Choice, error) {
	u, err := nixconf.ParseStoreURI(uri)
	if err == nil && u.Kind == "auto" && len(u.Parameters) == 0 {
		u, err = nixconf.ParseStoreURI(f.Default)
	}
	if err != nil {
		return Choice{}, err
	}
	if u.Kind == "auto" && len(u.Parameters) == 0 {
		return f.auto()
	}
	choice := Choice{Config: machine(f.Getenv), URI: u.String(), Reason: "it was named"}
	if err := f.place(u, &choice); err != nil {
		return Choice{}, fmt.Errorf("store %q: %w", u, err)
	}
	if u.Kind == "daemon" {
		choice.ThroughNix, choice.Strict, choice.Reason = true, true, "it was asked for"
		choice.Socket = f.socketOf(u, choice.Config)
		choice.Opaque = filepath.Clean(choice.Socket) != choice.Config.socket()
		return choice, nil
	}
	return f.withoutWAL(choice), nil
}

// socketOf is the socket of a daemon that was named.
func (f Facts) socketOf(u nixconf.StoreURI, c Config) string {
	switch {
	case u.Path != "":
		return u.Path
	case f.Getenv("NIX_DAEMON_SOCKET_PATH") == "" && c.StateDir != machine(f.Getenv).StateDir:
		return c.socket()
	}
	return f.Socket
}

// withoutWAL goes through Nix where a database has a rollback journal, as with
// use-sqlite-wal = false: Nix locks such a database in another way.
func (f Facts) withoutWAL(c Choice) Choice {
	if f.HaveNix && !hasWAL(c.Config.state("db/db.sqlite")) {
		c.ThroughNix, c.Strict, c.Opaque, c.Reason = true, true, true, "its database is without WAL"
	}
	return c
}

// hasWAL reads the version in the header of a database: 2 has a write-ahead log.
func hasWAL(file string) bool {
	f, err := os.Open(file)
	if err != nil {
		return true // there is none, or it will be said why it cannot be read
	}
	defer f.Close()
	var version [1]byte
	const offset = 18
	_, err = f.ReadAt(version[:], offset)
	return err != nil || version[0] != 1
}

// auto does what Nix does where there is a Nix, and else takes a store of our own.
func (f Facts) auto() (Choice, error) {
	c := machine(f.Getenv)
	c.NoSymlinks = !f.AllowSymlinks
	switch {
	case !f.HaveDatabase && !f.HaveNix:
		return f.userStore("copy-closure", "there is no Nix on this machine"), nil
	case f.HaveSocket:
		return Choice{Config: c, ThroughNix: true, Socket: f.Socket, Opaque: filepath.Clean(f.Socket) != c.socket(), Reason: "a Nix daemon runs here"}, nil
	case f.StateWritable && f.StoreWritable:
		return f.withoutWAL(Choice{Config: c, Reason: "the store may be written and no Nix daemon runs"}), nil
	case f.HaveNix && !f.HaveState && f.Getenv("NIX_STORE_DIR") == "" && f.Getenv("NIX_STATE_DIR") == "":
		return f.userStore("nix/root", "this user may not make "+c.StateDir+": as Nix 2.10 and newer"), nil
	case f.HaveNix:
		return Choice{Config: c, ThroughNix: true, Reason: "this user may not write the store"}, nil
	}
	return Choice{Config: c, Reason: "there is a store, and neither a Nix daemon nor nix-store"}, nil
}

// userStore is a store below this user's directory for data.
func (f Facts) userStore(name, reason string) Choice {
	data := f.Getenv("XDG_DATA_HOME")
	if data == "" {
		data = filepath.Join(f.Home, ".local/share")
	}
	c := Under(filepath.Join(data, name))
	c.StoreDir = StoreDir(f.Getenv)
	return Choice{Config: c, Reason: reason}
}

// place applies the parameters of a URI, and its path where that is a root.
func (f Facts) place(u nixconf.StoreURI, choice *Choice) (err error) {
	c := &choice.Config
	root := u.Parameters["root"]
	if root == "" && u.Kind != "daemon" {
		root = u.Path
	}
	if root != "" {
		logical := c.StoreDir
		*c = Under(root)
		c.StoreDir = logical
	}
	c.NoSymlinks = !f.AllowSymlinks
	for name, value := range u.Parameters {
		if err := choice.set(name, value, u); err != nil {
			return fmt.Errorf("parameter %s: %w", name, err)
		}
	}
	if dir := u.Parameters["store"]; dir != "" && root == "" && u.Parameters["real"] == "" {
		c.RealDir = dir
	}
	for _, dir := range []string{c.RealDir, c.StateDir} {
		if strings.Contains(dir, "?") { // the rest of a URI, more likely than not
			return fmt.Errorf("directory %q: a store may not have a question mark in its name", dir)
		}
	}
	return c.check()
}

// set applies one parameter.
func (choice *Choice) set(name, value string, u nixconf.StoreURI) (err error) {
	c := &choice.Config
	local := u.Kind != "daemon"
	switch {
	case value == "":
	case name == "root" && !filepath.IsAbs(value):
		return fmt.Errorf("%q is not an absolute path", value)
	case name == "root":
	case name == "store":
		c.StoreDir = nix.StoreDir(filepath.Clean(value))
	case name == "real":
		c.RealDir = value
	case name == "state":
		c.StateDir = value
	case name == "log":
		c.LogDir = value
	case name == "require-sigs" && local:
		var required bool
		required, err = nixconf.ParseBool(value)
		choice.RequireSigs = &required
	case name == "read-only" && local:
		c.ReadOnly, err = nixconf.ParseBool(value)
	case name == "trusted": // where another store takes from this one without signatures
		_, err = nixconf.ParseBool(value)
	case nixconf.IsInconsequential(name):
	default:
		return errors.New("unsupported")
	}
	return err
}

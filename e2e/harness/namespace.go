package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A Namespace runs commands for which a scratch store is the machine's own:
// each gets a private mount namespace in which the store's files are /nix. The
// machine's own /nix stays as it is, and nobody else sees the mounts. Because
// the directories are the same ones for all commands, locks, sockets and
// temporary roots work between them. It needs root.
//
// A multi-user Nix is made of a [Namespace.StartDaemon] and commands of
// [AsNobody]: to them the state directory is not writable and the daemon's
// socket exists, which is how Nix's store "auto" chooses the daemon. Nothing
// else distinguishes it from an installed one but the missing build users.
//
// The variable NIX_DAEMON_SOCKET_PATH alone would do with Nix's own programs,
// but leaves NIX_REMOTE, NIX_STATE_DIR and the store's physical place to be
// set in each command, where a user's machine has none of them set.
type Namespace struct {
	Store *Store
	// ReadOnly mounts /nix/store read-only, as NixOS does. A Nix that runs as
	// root remounts it for itself.
	ReadOnly bool
}

// newRootScript gives a mount namespace another root, made at $new, with all that the
// machine has but /nix.
const newRootScript = `dir=$PWD
mkdir -p "$new"
mount -t tmpfs -o mode=755 tmpfs "$new"
for entry in /*; do
  if [ -L "$entry" ]; then cp -P "$entry" "$new/"
  elif [ -d "$entry" ] && [ "$entry" != /nix ]; then mkdir "$new$entry"; mount --rbind "$entry" "$new$entry"; fi
done
mkdir "$new/.old"
cd "$new"
pivot_root . .old
umount --lazy /.old
rmdir /.old
cd "$dir"
`

// namespaceScript makes $1 the directory /nix. A machine that has none keeps its root as
// it is: the commands get another.
const namespaceScript = `set -e
nix=$1; shift
if ! [ -d /nix ]; then
new=${nix%/nix}/root
` + newRootScript + `mkdir /nix
fi
mount --bind "$nix" /nix
`

const readOnlyScript = `mount --bind /nix/store /nix/store
mount -o remount,bind,ro /nix/store
`

// WithoutNixDir returns the beginning of a command line for a machine that has no /nix.
// It needs root, and a directory for scratch files.
func WithoutNixDir(dir string) []string {
	script := "set -e\nnew=$1; shift\n" + newRootScript + `exec "$@"`
	return []string{"unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", filepath.Join(dir, "root")}
}

// NoExec returns the beginning of a command line for use inside of a namespace:
// programs in dir cannot be started from then on.
func NoExec(dir string) []string {
	return []string{"sh", "-c", `mkdir -p "$0" && mount -t tmpfs -o noexec,mode=700 tmpfs "$0" && exec "$@"`, dir}
}

// confDir is where Nix's configuration lies inside of the namespace, where
// every user can read it.
const confDir = "/nix/etc"

// NewNamespace prepares a store for being /nix. A configuration that is there
// already, nix/etc/nix.conf below the store's root, stays.
func NewNamespace(s *Store, readOnly bool) (*Namespace, error) {
	n := &Namespace{Store: s, ReadOnly: readOnly}
	conf := filepath.Join(s.Root, confDir)
	if _, err := os.Stat(filepath.Join(conf, "nix.conf")); err == nil {
		return n, nil
	}
	return n, WriteNixConf(conf)
}

// Command returns the command line that runs args in the namespace. It is to
// be run with the variables of [Namespace.Env].
func (n *Namespace) Command(args ...string) []string {
	script := namespaceScript
	if n.ReadOnly {
		script += readOnlyScript
	}
	script += `exec "$@"`
	line := []string{"unshare", "--mount", "--propagation", "private",
		"sh", "-c", script, "sh", filepath.Join(n.Store.Root, "nix")}
	return append(line, args...)
}

// Env returns the variables (K=V) that keep the machine's configuration out.
func (n *Namespace) Env() []string {
	return []string{"NIX_CONF_DIR=" + confDir, "NIX_USER_CONF_FILES=", "NIX_REMOTE="}
}

// AsNobody returns the command line with which root runs args as the user
// nobody, with home as its home directory and the place of its scratch files.
func AsNobody(home string, args ...string) ([]string, error) {
	nobody, err := user.Lookup("nobody")
	if err != nil {
		return nil, err
	}
	line := []string{"setpriv", "--reuid=" + nobody.Uid, "--regid=" + nobody.Gid, "--clear-groups", "--",
		"env", "HOME=" + home, "USER=nobody", "LOGNAME=nobody",
		"TMPDIR=" + home, "XDG_CACHE_HOME=" + home + "/cache"}
	return append(line, args...), nil
}

// A Daemon is a running nix-daemon.
type Daemon struct{ cmd *exec.Cmd }

// StartDaemon starts the store's daemon as root and returns when it answers.
func (n *Namespace) StartDaemon(ctx context.Context) (*Daemon, error) {
	line := n.Command("nix-daemon")
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = append(os.Environ(), n.Env()...)
	cmd.SysProcAttr = ownGroup()
	// The processes that serve connections keep the log open.
	cmd.WaitDelay = time.Second
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	d := &Daemon{cmd: cmd}
	err := n.awaitDaemon(ctx)
	if err == nil {
		return d, nil
	}
	err = errors.Join(err, d.Close())
	return nil, fmt.Errorf("start nix-daemon: %w: %s", err, log.String())
}

func (n *Namespace) awaitDaemon(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	line := n.Command("nix", "store", "ping", "--store", "daemon")
	for {
		cmd := exec.CommandContext(ctx, line[0], line[1:]...)
		cmd.Env = append(os.Environ(), n.Env()...)
		out, err := cmd.CombinedOutput()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("no answer from its socket: %w: %s", err, out)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Close kills the daemon. Connections of clients that live on are served to
// their end by processes of their own.
func (d *Daemon) Close() error {
	err := syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL)
	d.cmd.Wait() // says that it was killed
	return err
}

package harness

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// A User is one whom the machine has only inside of a namespace: the files that say who
// he is and what he may do are covered there by others in Dir.
type User struct {
	Name string
	Dir  string
}

// userID is a number that no system and no person has.
const userID = 61842

const userScript = `for f in passwd shadow group; do mount --bind "$0/$f" "/etc/$f" || exit; done
if [ -d /etc/sudoers.d ]; then mount --bind "$0/sudoers.d" /etc/sudoers.d || exit; fi
exec "$@"`

// NewUser makes a user with a home, a password and a login shell, and another home for root. What lies in
// sudoers.d below dir is in force for sudo.
func NewUser(dir, name, password, shell string) (*User, error) {
	u := &User{name, dir}
	hash, err := exec.Command("openssl", "passwd", "-6", password).Output()
	if err != nil {
		return nil, fmt.Errorf("openssl passwd: %w", err)
	}
	return u, errors.Join(
		os.MkdirAll(filepath.Join(dir, "sudoers.d"), 0o755),
		os.Mkdir(u.Home(), 0o700),
		os.Chown(u.Home(), userID, userID),
		os.Mkdir(filepath.Join(dir, "root"), 0o700),
		u.extend("passwd", 0o644, fmt.Sprintf("%s:x:%d:%d::%s:%s\n", name, userID, userID, u.Home(), shell)),
		u.extend("shadow", 0o600, fmt.Sprintf("%s:%s:20000::::::\n", name, bytes.TrimSpace(hash))),
		u.extend("group", 0o644, fmt.Sprintf("%s:x:%d:\n", name, userID)),
	)
}

// extend makes a file of the machine's with one more line.
func (u *User) extend(name string, mode os.FileMode, line string) error {
	text, err := os.ReadFile(filepath.Join("/etc", name))
	if err != nil {
		return err
	}
	text = bytes.Replace(text, []byte(":/root:"), []byte(":"+filepath.Join(u.Dir, "root")+":"), 1)
	return os.WriteFile(filepath.Join(u.Dir, name), append(text, line...), mode)
}

// Home is the user's home directory.
func (u *User) Home() string { return filepath.Join(u.Dir, "home") }

// Command returns the beginning of a command line for use inside of a namespace: from
// then on the machine has the user.
func (u *User) Command() []string { return []string{"sh", "-c", userScript, u.Dir} }

package transport_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/copy-closure/copy-closure/transport"
)

// What the user says about masters, local commands and the kind of session neither
// keeps our ssh from working nor outlives it, in a file and on the command line.
func TestOpenSSHBesideTheUsersSettings(t *testing.T) {
	needProgram(t, "ssh")
	tests := []struct {
		name    string
		setting []string
		flags   []string
		runs    int // of the LocalCommand
	}{
		{"master", []string{"ControlMaster auto", "ControlPath SOCKET", "ControlPersist 600"}, nil, 0},
		{"master by flag", []string{"ControlMaster auto", "ControlPersist yes"}, []string{"-S", "SOCKET"}, 0},
		{"no local command", []string{"PermitLocalCommand no", "LocalCommand COMMAND"}, nil, 0},
		{"local command", []string{"PermitLocalCommand yes", "LocalCommand COMMAND"}, nil, 1},
		{"sessions", []string{"SessionType none", "StdinNull yes", "ForkAfterAuthentication yes", "RemoteCommand false", "RequestTTY force"}, nil, 0},
	}
	for _, test := range tests {
		for _, where := range []string{"file", "command line"} {
			t.Run(test.name+"/"+where, func(t *testing.T) {
				h, s := newHost(t), newSetup(t)
				dir, err := os.MkdirTemp("/tmp", "cm") // the path of a socket must be short
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { os.RemoveAll(dir) })
				ran := filepath.Join(dir, "ran")
				fill := strings.NewReplacer("SOCKET", dir+"/master", "COMMAND", "echo noise; echo %n >>"+ran)
				var lines []string
				for _, setting := range test.setting {
					if where == "file" {
						lines = append(lines, fill.Replace(setting))
					} else {
						s.options.SSHOptions = append(s.options.SSHOptions, "-o", fill.Replace(setting))
					}
				}
				for _, flag := range test.flags {
					s.options.SSHOptions = append(s.options.SSHOptions, fill.Replace(flag))
				}
				s.add("there", h, lines...)
				s.options.Program = transport.ProgramOpenSSH
				conn := s.mustDial("there")
				works(t, conn)
				works(t, conn)
				conn.Close()
				text, _ := os.ReadFile(ran)
				if string(text) != strings.Repeat("there\n", test.runs) {
					t.Errorf("the LocalCommand wrote %q", text)
				}
				if !h.ends() {
					t.Error("a connection is left")
				}
				if _, err := os.Stat(dir + "/master"); err == nil {
					t.Error("the user's ControlPath was used")
				}
			})
		}
	}
}

// ends waits until no connection to the host is left, and reports whether that came
// about.
func (h *host) ends() bool {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		h.mu.Lock()
		n := len(h.children)
		h.mu.Unlock()
		if n == 0 {
			return true
		}
	}
	return false
}

// The built-in client leaves a LocalCommand that is permitted to ssh.
func TestLocalCommandSelectsSSH(t *testing.T) {
	needProgram(t, "ssh")
	h, s := newHost(t), newSetup(t)
	s.add("there", h, "PermitLocalCommand yes", "LocalCommand true")
	if got := s.mustDial("there").Describe(); got != "openssh, because LocalCommand is true" {
		t.Error(got)
	}
}

// The name of a Host block may contain a slash, as those of systemd's ssh proxy do.
func TestAliasWithSlash(t *testing.T) {
	eachProgram(t, func(t *testing.T, program string) {
		h, s := newHost(t), newSetup(t)
		s.add("group/web1", h)
		s.options.Program = program
		works(t, s.mustDial("group/web1"))
	})
}

package transport_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/transport"
)

// askEnv makes the test binary the program that asks at its terminal.
const askEnv = "TRANSPORT_TEST_ASK"

func TestMain(m *testing.M) {
	if what := os.Getenv(askEnv); what != "" {
		askAtTerminal(what)
		return
	}
	os.Exit(m.Run())
}

// askAtTerminal asks, and prints what comes of it to its standard output.
func askAtTerminal(what string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	p := &transport.TerminalPrompter{Show: func(s string) string { return strings.ReplaceAll(s, "\x1b", "") }}
	var answer any
	var err error
	switch what {
	case "password":
		answer, err = p.Password(ctx, "\x1b[2JSecret: ")
	case "confirm":
		answer, err = p.Confirm(ctx, "Sure?")
	case "cancel":
		ctx, cancel := context.WithCancel(ctx)
		time.AfterFunc(50*time.Millisecond, cancel)
		answer, err = p.Password(ctx, "Secret: ")
	case "interrupt":
		answer, err = p.Password(ctx, "Secret: ")
		<-interrupts
	}
	fmt.Printf("%v %v %v", answer, err, transport.HaveTerminal())
}

// openTerminal returns both ends of a new pseudo-terminal.
func openTerminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		harness.Unavailable(t, err)
	}
	t.Cleanup(func() { ours.Close() })
	number, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	return ours, theirs
}

func TestTerminalPrompter(t *testing.T) {
	tests := []struct {
		name, prompt, keys string
		want               string
	}{
		{"password", "Secret: ", "hunter3\x7f2\r", "hunter2 <nil> true"},
		{"confirm", "yes or no: ", "what\ryes\r", "true <nil> true"},
		{"confirm", "yes or no: ", "no\r", "false <nil> true"},
		{"cancel", "Secret: ", "", " context canceled true"},
		{"interrupt", "Secret: ", "abc\x03", " context canceled true"},
		{"password", "Secret: ", "\x04", " no answer true"},
	}
	for _, test := range tests {
		t.Run(test.name+" "+test.want, func(t *testing.T) {
			ours, theirs := openTerminal(t)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), askEnv+"="+test.name)
			var result strings.Builder
			cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, &result, os.Stderr
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			shown := ""
			buf := make([]byte, 1024)
			for !strings.Contains(shown, test.prompt) {
				n, err := ours.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				shown += string(buf[:n])
			}
			if _, err := ours.WriteString(test.keys); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			if result.String() != test.want {
				t.Errorf("got %q, want %q", result.String(), test.want)
			}
			if strings.Contains(shown, "\x1b[2J") {
				t.Errorf("an escape sequence was passed on: %q", shown)
			}
		})
	}
}

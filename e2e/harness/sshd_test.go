package harness_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/copy-closure/copy-closure/e2e/harness"
)

func startSshd(t *testing.T, config harness.SshdConfig) *harness.Sshd {
	t.Helper()
	harness.Need(t, "sshd", "ssh")
	config.Dir = t.TempDir()
	s, err := harness.StartSshd(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func clientConfig(t *testing.T, s *harness.Sshd, addr string) string {
	t.Helper()
	config, err := s.ClientConfig(addr)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func ssh(t *testing.T, config string, command ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "ssh", append([]string{"-F", config, harness.FarHost}, command...)...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func TestSshd(t *testing.T) {
	const show = `echo "<$GREETING>" "<$SSH_ORIGINAL_COMMAND>"`
	tests := []struct {
		name           string
		config         harness.SshdConfig
		stdout, stderr string
	}{
		{"plain", harness.SshdConfig{}, "<> <>\n", ""},
		{"environment", harness.SshdConfig{Env: []string{"OTHER=1", `GREETING=a "quoted" \ word?x=y`}},
			`<a "quoted" \ word?x=y> <>` + "\n", ""},
		{"noise", harness.SshdConfig{Noise: "it's Monday\n"}, "it's Monday\n<> <>\n", ""},
		{"forced command", harness.SshdConfig{ForceCommand: "echo forced"}, "forced\n", ""},
		{"forced command of the key", harness.SshdConfig{KeyCommand: `echo "of the key"`}, "of the key\n", ""},
		{"banner", harness.SshdConfig{Banner: "private property\n"}, "<> <>\n", "private property\n"},
		{"prefix", harness.SshdConfig{Prefix: []string{"nice"}}, "<> <>\n", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := startSshd(t, test.config)
			stdout, stderr, err := ssh(t, clientConfig(t, s, s.Addr()), show)
			// ssh ends lines of its own with a carriage return.
			stderr = strings.ReplaceAll(stderr, "\r", "")
			if err != nil || stdout != test.stdout || stderr != test.stderr {
				t.Errorf("got %q, %q, %v, want %q, %q", stdout, stderr, err, test.stdout, test.stderr)
			}
		})
	}
}

func TestSshdThroughPipe(t *testing.T) {
	s := startSshd(t, harness.SshdConfig{Env: []string{"GREETING=hello"}})
	config, err := s.PipeConfig()
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr, err := ssh(t, config, "echo $GREETING")
	if err != nil || stdout != "hello\n" {
		t.Errorf("got %q, %v, %s", stdout, err, stderr)
	}
	if log := s.Log(); strings.Contains(log, "Accepted") {
		t.Errorf("the listening server was used:\n%s", log)
	}
}

func TestSshdRefusesOtherKeys(t *testing.T) {
	s := startSshd(t, harness.SshdConfig{})
	config := clientConfig(t, s, s.Addr())
	key := t.TempDir() + "/key"
	if _, err := harness.WriteKey(key); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	own, _, _ := strings.Cut(strings.SplitAfter(string(text), "IdentityFile ")[1], "\n")
	os.WriteFile(config, []byte(strings.Replace(string(text), own, key, 1)), 0o644)
	if _, stderr, err := ssh(t, config, "true"); err == nil || !strings.Contains(stderr, "Permission denied") {
		t.Errorf("got %v, %q, want a refusal", err, stderr)
	}
}

// A login shell that answers n lines needs n round trips behind the two that
// it takes to open a session and to run a command in it.
func TestRoundTrips(t *testing.T) {
	s := startSshd(t, harness.SshdConfig{})
	r := startRelay(t, s.Addr())
	config := clientConfig(t, s, r.Addr())
	count := func(lines int) float64 {
		got, err := harness.RoundTrips(t.Context(), s, r, 4, func(ctx context.Context) (time.Duration, error) {
			start := time.Now()
			err := talk(ctx, config, lines)
			return time.Since(start), err
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	// Opening the session and starting the command are pipelined by ssh in
	// part, so only the difference is exact.
	few, many := count(1), count(6)
	t.Logf("1 line: %.2f round trips, 6 lines: %.2f", few, many)
	if d := many - few; d < 4 || d > 6 {
		t.Errorf("five more lines cost %.2f round trips, want 5", d)
	}
}

// talk has a remote cat send back lines, one at a time.
func talk(ctx context.Context, config string, lines int) error {
	cmd := exec.CommandContext(ctx, "ssh", "-F", config, harness.FarHost, "cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	for range lines {
		in.Write([]byte("x"))
		out.Read(make([]byte, 1))
	}
	in.Close()
	return cmd.Wait()
}

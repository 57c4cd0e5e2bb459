package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/transport"
)

func TestArrange(t *testing.T) {
	cases := []struct {
		line, want, err string
	}{
		{line: "--to host path", want: "--to -- host path"},
		{line: "host --to path -n", want: "--to -n -- host path"},
		{line: "--from -s host path", want: "--from -s -- host path"},
		{line: "--store /x host", want: "--store=/x -- host"},
		{line: "host --store=/x", want: "--store=/x -- host"},
		{line: "-nv host", want: "-n -v -- host"},
		{line: "-j4 host", want: "-j=4 -- host"},
		{line: "-nj 4 host", want: "-n -j=4 -- host"},
		{line: "--option cores 4 host", want: "--option=cores=4 -- host"},
		{line: "--to -- -n host", want: "--to -- -n host"},
		{line: "- host", want: "-- - host"},
		{line: "--store", err: "takes a value"},
		{line: "--option cores", err: "takes a name and a value"},
		{line: "--dryrun", err: "did you mean --dry-run?"},
		{line: "--xyzzy", err: "no option --xyzzy"},
		{line: "-nZ", err: "no option -nZ"},
	}
	for _, c := range cases {
		got, err := arrange(strings.Fields(c.line), copyFlags())
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) || exitCode(err) != exitUsage {
				t.Errorf("%q: error %v, want a usage error with %q", c.line, err, c.err)
			}
			continue
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%q: got %q, %v; want %q", c.line, got, err, c.want)
		}
	}
}

func TestParseHost(t *testing.T) {
	h, err := parseHost("ssh://root@web1:2222?remote-program=sudo nix-store&remote-store=/x%20y&compress=true")
	if err != nil {
		t.Fatal(err)
	}
	if h.name != "root@web1:2222" || h.program != "sudo nix-store" || h.store != "/x y" || !h.compress {
		t.Errorf("parsed to %+v", h)
	}
	if _, err := parseHost("ssh-ng://web1?max-connections=2&max-connection-age=600&trusted=1&priority=3"); err != nil {
		t.Error(err)
	}
	if h, err := parseHost("ssh-ng://web1"); err != nil || !h.worker {
		t.Errorf("parsed to %+v, %v", h, err)
	}
	for _, text := range []string{"", "-oProxyCommand=x", "ssh://-x", "http://web1", "web1?remote-shop=x", "a;b", "root:s3cret@web1", "ssh://root:s3/cret@web1",
		"https://root:s3cret@web1", "web1?password=s3cret", "web1?x=s3%zzcret"} {
		if h, err := parseHost(text); err == nil || strings.Contains(err.Error(), "cret") {
			t.Errorf("%q: %+v, %v", text, h, err)
		}
	}
}

func TestParseRate(t *testing.T) {
	for text, want := range map[string]int{"100": 100, "500K": 512000, "2M": 2 << 20, "1.5MiB": 3 << 19, "1g": 1 << 30} {
		if got, err := parseRate(text); err != nil || got != want {
			t.Errorf("parseRate(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "fast", "-1", "0", "1X", "1MM", "1e30"} {
		if got, err := parseRate(text); err == nil {
			t.Errorf("parseRate(%q) = %d, want an error", text, got)
		}
	}
}

func TestExitCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{usagef("x"), 2},
		{&transport.ConnectError{Err: errors.New("x")}, 3},
		{&transport.AuthError{}, 3},
		{&transport.HostKeyError{}, 3},
		{nix.ErrNotTrusted, 4},
		{&notInSourceError{nix.ErrNotValid}, 5},
		{nix.ErrNotValid, 1}, // at the destination
		{&nix.HashMismatchError{}, 6},
		{&os.PathError{Err: syscall.ENOSPC}, 1}, // not at the destination, or it would say so
		{&outputError{fmt.Errorf("%w: %w", nix.ErrNoSpace, syscall.ENOSPC)}, 1},
		{nix.ErrNoSpace, 7},
		{errInterrupted, 130},
		{context.Canceled, 1},
		{&delegatedError{4}, 4},
	} {
		if c.err != nil {
			c.err = fmt.Errorf("push web1: %w", c.err)
		}
		if got := exitCode(c.err); got != c.want {
			t.Errorf("exit code of %v is %d, want %d", c.err, got, c.want)
		}
	}
}

// TestHelp holds the help text against the flags, the README and a screen.
func TestHelp(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), "```\n"+helpText+"```\n") {
		t.Error("README.md does not show the help text as it is")
	}
	lines := strings.Split(strings.TrimSuffix(helpText, "\n"), "\n")
	if len(lines) > 45 {
		t.Errorf("help has %d lines, more than a screen", len(lines))
	}
	for _, line := range lines {
		if n := utf8.RuneCountInString(line); n > screenColumns {
			t.Errorf("line of %d columns: %s", n, line)
		}
	}
	for _, f := range copyFlags() {
		if v := f.(cli.VisibleFlag); !v.IsVisible() {
			continue
		}
		if name := "--" + f.Names()[0]; !strings.Contains(helpText, name) {
			t.Errorf("help does not mention %s", name)
		}
	}
}

// TestCommandHelp holds the help of each command against its flags and a screen.
func TestCommandHelp(t *testing.T) {
	eachCommand([]string{"copy-closure"}, new(program).app().Commands, func(words []string, c *cli.Command) {
		text := commandHelp(words, c)
		for line := range strings.Lines(text) {
			if n := utf8.RuneCountInString(line) - 1; n > screenColumns {
				t.Errorf("%v: line of %d columns: %s", words, n, line)
			}
		}
		if strings.Contains(text, "VALUE") {
			t.Errorf("%v: what an option takes has no name:\n%s", words, text)
		}
		own, _ := ownFlags(c.Flags)
		for _, f := range own {
			if name := "--" + f.Names()[0]; len(c.Subcommands) == 0 && !strings.Contains(text, name) {
				t.Errorf("%v: help does not mention %s", words, name)
			}
		}
	})
}

// TestReadmeTable wants every option that is accepted without meaning in the README.
func TestReadmeTable(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range irrelevantOptions {
		found := slices.ContainsFunc(strings.Fields(o.names), func(name string) bool {
			return strings.Contains(string(readme), "`-"+name+"`") || strings.Contains(string(readme), "`--"+name+"`")
		})
		if !found {
			t.Errorf("README does not say what becomes of %s", o.names)
		}
	}
}

func TestTruth(t *testing.T) {
	info := &nix.PathInfo{NARSize: 3 << 20}
	plan := &closure.Plan{Present: make([]nix.StorePath, 1382), Substitute: make([]nix.StorePath, 2), Send: []*nix.PathInfo{info, info}}
	for link, sent := range map[int64]string{
		6<<20 + 1000: "6.0 MiB sent",
		80 << 10:     "80 KiB sent for 6.0 MiB",
		9 << 20:      "9.0 MiB sent for 6.0 MiB",
	} {
		got := truth(plan, "pushed", "to web1", link, 4, 18200*time.Millisecond)
		want := "pushed 2 of 1,386 paths to web1: " + sent + ", 2 substituted there, 1,382 present, 4 round trips, 18.2 s"
		if got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestOursWouldHelp(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		sent      int64
		rtt, took time.Duration
		want      bool
	}{
		{51 << 20, 21 * ms, time.Second, true},
		{51 << 20, 0, 61 * time.Second, true},
		{51 << 20, 5 * ms, 61 * time.Second, true},
		{51 << 20, 20 * ms, time.Second, false},
		{51 << 20, 0, time.Second, false},
		{50 << 20, 100 * ms, 61 * time.Second, false},
		{0, 0, 0, false},
	} {
		if got := oursWouldHelp(c.sent, c.rtt, c.took); got != c.want {
			t.Errorf("%d bytes, round trip %s, %s: %t", c.sent, c.rtt, c.took, got)
		}
	}
}

func TestAllowedCaches(t *testing.T) {
	trusted := []string{"https://a", "http://b/", "file:///c"}
	got := allowedCaches([]string{"https://a/", "http://b", "http://evil", "file:///"}, trusted)
	if want := trusted[:2]; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := allowedCaches([]string{"http://evil"}, nil); len(got) != 0 {
		t.Errorf("nothing is trusted, but %q is used", got)
	}
}

func TestRootRequest(t *testing.T) {
	for _, c := range []struct {
		q     rootRequest
		paths int
		ok    bool
	}{
		{rootRequest{}, 3, true},
		{rootRequest{links: []string{"a"}}, 1, true},
		{rootRequest{links: []string{"a"}}, 2, false},
		{rootRequest{profile: "p"}, 1, true},
		{rootRequest{profile: "p"}, 2, false},
	} {
		if err := c.q.check(c.paths); (err == nil) != c.ok {
			t.Errorf("%+v for %d paths: %v", c.q, c.paths, err)
		}
	}
}

// TestVerbose counts -v for every depth of commands, whose flags are the same ones.
func TestVerbose(t *testing.T) {
	for line, want := range map[string]int{"": 0, "-v": 1, "-vv": 2, "group sub": 0, "group sub --verbose": 1, "group sub -v": 1, "one -vv": 2} {
		got := -1
		action := func(c *cli.Context) error { got = c.Count("verbose"); return nil }
		app := &cli.App{
			Flags: copyFlags(), Action: action,
			Commands: []*cli.Command{
				{Name: "one", Flags: logFlags, Action: action},
				{Name: "group", Subcommands: []*cli.Command{{Name: "sub", Flags: logFlags, Action: action}}},
			},
		}
		if err := new(program).runApp(t.Context(), app, strings.Fields(line)); err != nil || got != want {
			t.Errorf("%q: verbose %d times, %v; want %d", line, got, err, want)
		}
	}
}

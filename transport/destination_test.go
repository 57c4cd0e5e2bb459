package transport_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/transport"
)

func TestParseDestination(t *testing.T) {
	tests := []struct {
		in   string
		want transport.Destination
		out  string // empty: as in
	}{
		{"web1", transport.Destination{Host: "web1"}, ""},
		{"nix@web1.example.org:2222", transport.Destination{User: "nix", Host: "web1.example.org", Port: 2222}, ""},
		{"a@b@web1", transport.Destination{User: "a@b", Host: "web1"}, ""},
		{`DOMAIN\nix@web1`, transport.Destination{User: `DOMAIN\nix`, Host: "web1"}, ""},
		{"[::1]:22", transport.Destination{Host: "::1", Port: 22}, ""},
		{"root@[fe80::1%eth0]", transport.Destination{User: "root", Host: "fe80::1%eth0"}, ""},
		{"::1", transport.Destination{Host: "::1"}, "[::1]"},
		{"[web1]:1", transport.Destination{Host: "web1", Port: 1}, "web1:1"},
	}
	for _, test := range tests {
		got, err := transport.ParseDestination(test.in)
		if err != nil {
			t.Errorf("%s: %v", test.in, err)
			continue
		}
		if diff := cmp.Diff(got, test.want); diff != "" {
			t.Errorf("%s: got - want +\n%s", test.in, diff)
		}
		want := test.out
		if want == "" {
			want = test.in
		}
		if got.String() != want {
			t.Errorf("%s: String is %s", test.in, got)
		}
	}
}

// hostileDestinations would be options, commands or other files to somebody.
var hostileDestinations = []string{
	"", "@", "@web1", "nix@", "-oProxyCommand=touch /tmp/x", "nix@-oProxyCommand=x", "-oProxyCommand=x@web1",
	"web1;reboot", "web1 reboot", "web1\nreboot", "$(reboot)", "`reboot`", "web1|x", "web1&", "web1>x", `web1\`, "web1'", `web1"`,
	"a\tb@web1", "a;b@web1", "a'b@web1", "web1\x00", "web1:0", "web1:65536", "web1:-1", "web1:+22", "web1:x", "web1:",
	"[::1", "[::1]x", "[]", "a:b:c", "web1,web2", "[a]b]",
}

func TestParseDestinationRefuses(t *testing.T) {
	for _, s := range hostileDestinations {
		if d, err := transport.ParseDestination(s); err == nil {
			t.Errorf("%q was taken as %+v", s, d)
		}
	}
}

func TestDialRefusesHostileDestination(t *testing.T) {
	for _, d := range []transport.Destination{{Host: "-oProxyCommand=x"}, {User: "-l", Host: "web1"}, {}, {Host: "a b"}, {Host: "web1", Port: -1}} {
		if _, err := transport.Dial(t.Context(), d, transport.Options{Program: transport.ProgramOpenSSH}); err == nil {
			t.Errorf("%+v was dialed", d)
		}
	}
}

func FuzzParseDestination(f *testing.F) {
	for _, s := range append(hostileDestinations, "nix@web1:22", "[::1]:22", "::1") {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := transport.ParseDestination(s)
		if err != nil {
			return
		}
		if d.Host[0] == '-' {
			t.Errorf("%q: host %q", s, d.Host)
		}
		again, err := transport.ParseDestination(d.String())
		if err != nil || again != d {
			t.Errorf("%q is %+v, and written as %q it is %+v, %v", s, d, d, again, err)
		}
	})
}

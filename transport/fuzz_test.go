package transport_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/copy-closure/copy-closure/transport"
)

func FuzzWildcard(f *testing.F) {
	f.Add("*.example.?rg", "www.example.org")
	f.Add("a**b*", "ab")
	f.Add("***", "")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if len(pattern) > 50 || len(name) > 50 || !utf8.ValidString(pattern+name) || strings.IndexFunc(pattern+name, func(r rune) bool { return r >= utf8.RuneSelf }) >= 0 {
			return
		}
		expression := strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(regexp.QuoteMeta(pattern))
		want := regexp.MustCompile("^(?s:" + expression + ")$").MatchString(name)
		if got := transport.WildcardMatches(pattern, name); got != want {
			t.Errorf("%q, %q: got %v, want %v", pattern, name, got, want)
		}
	})
}

func FuzzKnownHosts(f *testing.F) {
	k := newKey(f, filepath.Join(f.TempDir(), "key"), "")
	f.Add([]byte("web1 "+k.line()+"\n|1|AAAA|BBBB "+k.line()+"\n"), "web1")
	f.Add([]byte("@revoked * "+k.line()+"\n@cert-authority [*.a]:22,!b "+k.line()), "[x.a]:22")
	f.Add([]byte("# nothing\n\n@what\n"), "")
	f.Fuzz(func(t *testing.T, data []byte, host string) {
		lines := strings.Count(string(data), "\n") + 1
		if n := transport.KnownHostMatches(data, host); n > lines {
			t.Errorf("%d matches in %d lines", n, lines)
		}
	})
}

func FuzzKeyFile(f *testing.F) {
	file := filepath.Join(f.TempDir(), "key")
	newKey(f, file, "secret")
	data, err := os.ReadFile(file)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END OPENSSH PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		transport.OpenSSHPublicKey(data)
	})
}

func FuzzParseSSHOptions(f *testing.F) {
	for _, s := range []string{"-p 22", `-o "A b" -lx`, "-4Cp22", "-", "'"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		words, err := transport.ParseSSHOptions(s)
		if err != nil {
			return
		}
		again, err := transport.ParseSSHOptions(transport.Quote(words...))
		if err != nil || strings.Join(again, "\x00") != strings.Join(words, "\x00") {
			t.Errorf("%q: %q, and quoted %q, %v", s, words, again, err)
		}
	})
}

func FuzzParseSettings(f *testing.F) {
	f.Add("host a\nIdentityFile x y\nidentityfile z\nempty\n\n")
	f.Fuzz(func(t *testing.T, s string) {
		for key, values := range transport.ParseSettings(s) {
			if key != strings.ToLower(key) || len(values) == 0 {
				t.Errorf("%q: %q has %q", s, key, values)
			}
		}
	})
}

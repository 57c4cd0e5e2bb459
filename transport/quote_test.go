package transport_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/transport"
)

func TestQuote(t *testing.T) {
	tests := []struct {
		words []string
		want  string
	}{
		{nil, ""},
		{[]string{"nix-store", "--serve", "/nix/store/a+b"}, "nix-store --serve /nix/store/a+b"},
		{[]string{"", "a b"}, "'' 'a b'"},
		{[]string{"it's"}, `'it'\''s'`},
		{[]string{`\`, "!x"}, `\\ \!'x'`},
		{[]string{"~", "=ls", "a*"}, "'~' '=ls' 'a*'"},
	}
	for _, test := range tests {
		if got := transport.Quote(test.words...); got != test.want {
			t.Errorf("%q: got %s, want %s", test.words, got, test.want)
		}
	}
}

// Every shell that is here gets back the words that were quoted.
func TestQuoteThroughShells(t *testing.T) {
	words := []string{
		"plain", "", " ", "a b", "it's", "''", `"`, `\`, `\\`, `a\b`, `\n`, "$HOME", "`id`", "$(id)", "a;b", "a&b", "a|b",
		"~", "~root", "*", "?", "[a]", "{a,b}", "!", "!!", "a!b", "#x", "=ls", "%", "^", "-n", "<x", ">x", "(x)", "\t", "äöü", "\x01",
	}
	for _, shell := range []string{"sh", "bash", "dash", "zsh", "fish", "ksh", "csh", "tcsh"} {
		path, err := exec.LookPath(shell)
		if err != nil {
			continue
		}
		t.Run(shell, func(t *testing.T) {
			command := transport.Quote(append([]string{"printf", `%s\0`}, words...)...)
			out, err := exec.Command(path, "-c", command).Output()
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
			if diff := cmp.Diff(got, words); diff != "" {
				t.Errorf("got - want +\n%s", diff)
			}
		})
	}
}

func FuzzQuote(f *testing.F) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		f.Skip("there is no sh")
	}
	for _, s := range []string{"a", "", "it's", `\!'`, "$x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, word string) {
		if strings.Contains(word, "\x00") {
			return // no argument has any
		}
		out, err := exec.Command(sh, "-c", "printf %s "+transport.Quote("-"+word)).Output()
		if err == nil && string(out) == "-"+word {
			return
		}
		t.Errorf("%q: got %q, %v", word, out, err)
	})
}

package show_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
	"unicode"

	"github.com/copy-closure/copy-closure/internal/show"
)

func TestText(t *testing.T) {
	for text, want := range map[string]string{
		"Grüße, 世界 👋":                        "Grüße, 世界 👋",
		"a\tb\nc":                            "a\tb\nc",
		"\x1b[31;1merror:\x1b[0m no\x1b[K":   "error: no",
		"\x1b]0;title\a":                     `\x1b]0;title\x07`,
		"\x1b[2J\x1b[1;1H":                   `\x1b[2J\x1b[1;1H`,
		"\x1b\x1b[mc":                        `\x1bc`,
		"\x1b[\x1b[m2J":                      `\x1b[2J`,
		"a\r\nb\rc":                          "a\nb\\rc",
		"\x00\x7f\x08":                       `\x00\x7f\x08`,
		"\u009b31m\u0085":                    `\u009b31m\u0085`,
		"\x9b31m\xff\xc3":                    `\x9b31m\xff\xc3`,
		"\u202egnp.exe\u2066\u2069\u200f":    `\u202egnp.exe\u2066\u2069\u200f`,
		"\u061c\u200e\u200b\ufeff\u00ad":     `\u061c\u200e\u200b\ufeff\u00ad`,
		"\u2028\u2029\U000e0041":             `\u2028\u2029\U000e0041`,
		"\ufffd is a character":              "\ufffd is a character",
		"\xed\xa0\x80":                       `\xed\xa0\x80`,
		"\xc0\x9b":                           `\xc0\x9b`,
		"\x1b[31mred\x1b[38;5;1m\x1b[4:3mx!": "redx!",
	} {
		if got := show.Text(text); got != want {
			t.Errorf("Text(%q) = %q, want %q", text, got, want)
		}
	}
	if got, want := show.Line("a\nb\tc\r\nd"), `a\nb\tc\nd`; got != want {
		t.Errorf("Line: %q, want %q", got, want)
	}
	if got, want := show.Indented("no\nerror: forged"), "no\n  error: forged"; got != want {
		t.Errorf("Indented: %q, want %q", got, want)
	}
}

// FuzzText wants nothing but what is visible, whatever comes in.
func FuzzText(f *testing.F) {
	f.Add("\x1b[\x1b[31mm\x9b\u202e\xff")
	f.Fuzz(func(t *testing.T, text string) {
		for _, r := range show.Line(text) {
			if !unicode.IsGraphic(r) {
				t.Fatalf("%q holds %U", show.Line(text), r)
			}
		}
	})
}

func TestJSON(t *testing.T) {
	const text = "a\u202e\u009b\x7f\U000e0041\x1b ü \"\\ \u2028\n"
	raw, err := json.Marshal(map[string]string{"name": text})
	if err != nil {
		t.Fatal(err)
	}
	safe := show.JSON(raw)
	if got := show.Text(string(safe)); got != string(safe) {
		t.Errorf("%q is not fit for a terminal", safe)
	}
	var back map[string]string
	if err := json.Unmarshal(safe, &back); err != nil || back["name"] != text {
		t.Errorf("%s: %q, %v", safe, back, err)
	}
}

func TestURL(t *testing.T) {
	for text, want := range map[string]string{
		"https://cache.example.org/a@b":                "https://cache.example.org/a@b",
		"https://bob:s3cret@h.example:8080/c":          "https://xxxxx@h.example:8080/c",
		"https://ghp_s3cret@h.example":                 "https://xxxxx@h.example",
		"https://bob:s3%63ret@h":                       "https://xxxxx@h",
		"https://bob:s3/cret@h/c":                      "https://xxxxx@h/c",
		"https://bob:s3?cret@h/c":                      "https://xxxxx@h/c",
		"https://bob:s3#cret@h/c":                      "https://xxxxx@h/c",
		"https://bob:s3@cret@h/c":                      "https://xxxxx@h/c",
		"bob:s3cret@h.example/c":                       "xxxxx@h.example/c",
		"bob:s3/c?r#e@t@h.example/c":                   "xxxxx@h.example/c",
		"http:bob:s3cret@h.example/c":                  "xxxxx@h.example/c",
		"//bob:s3cret@h/c":                             "xxxxx@h/c",
		"https://h/c?X-Amz-Signature=s3cret&trusted=1": "https://h/c?X-Amz-Signature=xxxxx&trusted=1",
		"https://h/c?s3cret#s3cret":                    "https://h/c?xxxxx",
		"s3://b?endpoint=http://bob:s3cret@h&region=x": "s3://b?endpoint=http://xxxxx@h&region=x",
		"s3://b?endpoint=bob:s3cret@h":                 "s3://b?endpoint=xxxxx@h",
		"s3://b?endpoint=bob%3As3cret%40h":             "s3://b?endpoint=xxxxx@h",
		"s3://b?secret-key=s3cret":                     "s3://b?secret-key=xxxxx",
		"sftp://alice@h/srv":                           "sftp://alice@h/srv",
		"sftp://alice:s3cret@h/srv":                    "sftp://xxxxx@h/srv",
		"file:///srv/cache":                            "file:///srv/cache",
		"":                                             "",
	} {
		got := show.URL(text)
		if got != want {
			t.Errorf("URL(%q) = %q, want %q", text, got, want)
		}
	}
}

// TestVisibleAsLs compares with what ls calls visible in a name.
func TestVisibleAsLs(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"plain", "\x1b]0;x\a", "\u009bm", "\xff", "del\x7f", "a\nb"} {
		if err := os.WriteFile(dir+"/"+name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("ls", "-q", dir)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if got, want := show.Line(name) != name, strings.Contains(string(out), "?"); got != want {
			t.Errorf("%q: escaped: %v, by ls: %v", name, got, want)
		}
		os.Remove(dir + "/" + name)
	}
}

package e2e_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nixconf"
)

// readByLibraries are variables and files that Go's packages and other people's read for
// us, so that their names are not in our code.
var readByLibraries = []string{
	"AWS_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
	"AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_REGION", "AWS_ROLE_ARN",
	"AWS_ROLE_SESSION_NAME", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_SESSION_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE",
	"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_DIR", "http_proxy", "https_proxy", "no_proxy", "TMPDIR", "XDG_CACHE_HOME", "TZ",
	"/etc/passwd",
}

var (
	variableName = regexp.MustCompile(`^[A-Z][A-Z0-9]*(_[A-Z0-9]+)+$`)
	fileName     = regexp.MustCompile(`^/etc/[a-z][a-z0-9_./-]*[a-z0-9_]$`)
	documented   = regexp.MustCompile("`([^`\n]+)`")
)

// TestConfigurationDocument compares docs/configuration.md with the code: the variables,
// files and keys that are read.
func TestConfigurationDocument(t *testing.T) {
	text, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	inDocument := make(map[string]bool)
	for _, match := range documented.FindAllStringSubmatch(string(text), -1) {
		inDocument[match[1]] = true
	}
	inCode := namesInCode(t)
	for _, name := range readByLibraries {
		inCode[name] = true
	}
	for name := range inCode {
		if !inDocument[name] {
			t.Errorf("%s is read and not in docs/configuration.md", name)
		}
	}
	for name := range inDocument {
		if (variableName.MatchString(name) || fileName.MatchString(name)) && !inCode[name] {
			t.Errorf("%s is in docs/configuration.md and nothing reads it", name)
		}
	}
	checkKeys(t, section(string(text), "## Keys"))
	checkParameters(t, section(string(text), "## Parameters of a store"))
}

// namesInCode returns what looks like a variable or a file of the system, and all that
// is looked up in the environment.
func namesInCode(t *testing.T) map[string]bool {
	names := make(map[string]bool)
	err := filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && (e.Name() == "e2e" || e.Name() == "nixtest" || e.Name() == "testdata" || strings.HasPrefix(e.Name(), ".") && e.Name() != ".."):
			return filepath.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				if looksUp(n) {
					for _, arg := range n.Args {
						if name := literal(arg); name != "" {
							names[name] = true
						}
					}
				}
			case *ast.BasicLit:
				if name := literal(n); variableName.MatchString(name) || fileName.MatchString(name) {
					names[name] = true
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// looksUp reports whether a call reads the environment.
func looksUp(call *ast.CallExpr) bool {
	switch fun := call.Fun.(type) {
	case *ast.Ident:
		return slices.Contains([]string{"getenv", "env"}, fun.Name)
	case *ast.SelectorExpr:
		return slices.Contains([]string{"Getenv", "LookupEnv", "nonEmpty"}, fun.Sel.Name)
	}
	return false
}

func literal(e ast.Expr) string {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return ""
	}
	text, _ := strconv.Unquote(lit.Value)
	return text
}

// section returns what is below a heading, up to the next one.
func section(text, heading string) string {
	_, below, _ := strings.Cut(text, heading+"\n")
	below, _, _ = strings.Cut(below, "\n## ")
	return below
}

// firstColumn returns the names in the first column of a section's table.
func firstColumn(text string) []string {
	var names []string
	for line := range strings.Lines(text) {
		if cell, ok := strings.CutPrefix(line, "| `"); ok {
			cell, _, _ = strings.Cut(cell, " |")
			for _, match := range documented.FindAllStringSubmatch("`"+cell, -1) {
				names = append(names, match[1])
			}
		}
	}
	return names
}

func checkKeys(t *testing.T, text string) {
	t.Helper()
	want := nixconf.Keys()
	for alias := range nixconf.Aliases() {
		want = append(want, alias)
	}
	got := firstColumn(text)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("keys: the document has %q, the code reads %q", got, want)
	}
}

// checkParameters tries every parameter on a local store and on a daemon.
func checkParameters(t *testing.T, text string) {
	t.Helper()
	facts := localstore.Facts{Getenv: func(string) string { return "" }}
	names := firstColumn(text)
	if len(names) == 0 {
		t.Error("the document has no table of parameters")
	}
	for _, name := range append(names, "unheard-of") {
		value := "yes"
		if slices.Contains([]string{"root", "store", "real", "state", "log"}, name) {
			value = "/x"
		}
		_, err := facts.Choose("local?" + name + "=" + value)
		if (err == nil) != (name != "unheard-of") {
			t.Errorf("parameter %s of a local store: %v", name, err)
		}
	}
}

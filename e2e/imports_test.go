package e2e_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const modulePath = "github.com/copy-closure/copy-closure"

// corners are the four packages of the architecture. They meet in
// internal/cli and nowhere else.
var corners = []string{"closure", "transport", "remote", "substitute"}

// places are all folders that may hold packages. A new one is a change of the
// map in ARCHITECTURE.md.
var places = append([]string{
	".", "cmd/copy-closure-agent", "e2e", "internal/cli", "internal/delta", "internal/farend", "internal/localstore", "internal/nar",
	"internal/nix", "internal/nixconf", "internal/nixtest", "internal/planpage", "internal/progress",
	"internal/show", "internal/ui", "internal/version", "internal/wire",
}, corners...)

// onlyFrom lists packages that few others may import. The store of this
// machine reaches all but internal/cli through their own small interfaces.
var onlyFrom = map[string][]string{
	".":                   {},
	"e2e":                 {"e2e"},
	"internal/cli":        {"."},
	"internal/farend":     {"internal/cli", "cmd/copy-closure-agent"},
	"internal/localstore": {"internal/cli", "internal/farend", "cmd/copy-closure-agent"},
}

// nothing lists packages that import none of ours.
var nothing = []string{"transport", "internal/nix", "internal/show"}

// TestImports holds the code to the arrows of the architecture.
func TestImports(t *testing.T) {
	err := filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && e.Name() != ".." && (e.Name()[0] == '.' || e.Name() == "testdata"):
			return filepath.SkipDir
		case strings.HasSuffix(path, ".go"):
			checkFile(t, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func checkFile(t *testing.T, path string) {
	t.Helper()
	rel, err := filepath.Rel("..", path)
	if err != nil {
		t.Fatal(err)
	}
	from, known := place(filepath.ToSlash(filepath.Dir(rel)))
	if !known {
		t.Errorf("%s: not in a folder of the map", rel)
	}
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
	if err != nil {
		t.Error(err)
		return
	}
	for _, spec := range file.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		to, ours := ourPlace(name)
		if !ours || to == from {
			continue
		}
		if why := forbidden(from, to, strings.HasSuffix(path, "_test.go")); why != "" {
			t.Errorf("%s imports %s: %s", rel, name, why)
		}
	}
}

// place returns the folder of the map that dir is in.
func place(dir string) (string, bool) {
	for d := dir; d != "."; d = filepath.ToSlash(filepath.Dir(d)) {
		if slices.Contains(places, d) {
			return d, true
		}
	}
	return dir, dir == "."
}

func ourPlace(importPath string) (string, bool) {
	if importPath == modulePath {
		return ".", true
	}
	dir, ours := strings.CutPrefix(importPath, modulePath+"/")
	if !ours {
		return "", false
	}
	to, _ := place(dir)
	return to, true
}

// forbidden says why one place must not import another, or "". Tests may also
// import what only internal/cli may, internal/nixtest, and the harness of e2e.
func forbidden(from, to string, test bool) string {
	if from == "e2e" || test && to == "e2e" {
		return ""
	}
	toCorner := slices.Contains(corners, to)
	switch {
	case toCorner && slices.Contains(corners, from):
		return "closure, transport, remote and substitute never import each other"
	case toCorner && from != "internal/cli" && !(to == "remote" && from == "cmd/copy-closure-agent"):
		return "only internal/cli imports the four, and the agent, which serves, remote"
	case slices.Contains(nothing, from) && !(test && to == "internal/nixtest"):
		return "it imports nothing of ours"
	case test:
		return ""
	case to == "internal/nixtest":
		return "internal/nixtest is for tests"
	}
	if allowed, limited := onlyFrom[to]; limited && !slices.Contains(allowed, from) {
		return "only " + strings.Join(allowed, ", ") + " may"
	}
	return ""
}

func TestForbidden(t *testing.T) {
	tests := []struct {
		from, to string
		test     bool
		allowed  bool
	}{
		{"closure", "remote", false, false},
		{"closure", "remote", true, false},
		{"substitute", "transport", false, false},
		{"internal/cli", "remote", false, true},
		{"internal/localstore", "closure", false, false},
		{"internal/nixtest", "closure", false, false},
		{".", "internal/cli", false, true},
		{"cmd/copy-closure-agent", "remote", false, true},
		{"cmd/copy-closure-agent", "transport", false, false},
		{".", "remote", false, false},
		{"remote", "internal/cli", false, false},
		{"remote", "internal/wire", false, true},
		{"remote", "internal/localstore", false, false},
		{"remote", "internal/localstore", true, true},
		{"remote", "internal/nixtest", false, false},
		{"remote", "internal/nixtest", true, true},
		{"transport", "internal/nix", false, false},
		{"transport", "e2e", false, false},
		{"transport", "e2e", true, true},
		{"internal/nix", "internal/wire", false, false},
		{"internal/farend", "internal/localstore", false, true},
		{"internal/farend", "substitute", false, false},
		{"remote", "internal/farend", false, false},
		{"internal/cli", "e2e", false, false},
		{"e2e", "internal/cli", false, true},
	}
	for _, test := range tests {
		why := forbidden(test.from, test.to, test.test)
		if (why == "") != test.allowed {
			t.Errorf("forbidden(%q, %q, %v) = %q, want allowed %v", test.from, test.to, test.test, why, test.allowed)
		}
	}
}

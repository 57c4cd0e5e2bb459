package nixconf

import (
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
)

// A StoreURI is a store of this machine as Nix's store URIs name it.
type StoreURI struct {
	// Kind is "auto", "local" or "daemon".
	Kind string
	// Path is the root of a local store, or the socket of a daemon; empty: the usual one.
	Path       string
	Parameters map[string]string
}

// ParseStoreURI reads auto, local, daemon, unix://SOCKET, a directory that is the root
// of a store, or local://DIR, each with ?NAME=VALUE&… behind it.
func ParseStoreURI(text string) (StoreURI, error) {
	base, query, _ := strings.Cut(text, "?")
	u, err := parseStoreBase(base)
	if err == nil {
		u.Parameters, err = ParseQuery(query)
	}
	if err != nil {
		return StoreURI{}, fmt.Errorf("store %q: %w", text, err)
	}
	return u, nil
}

func parseStoreBase(base string) (StoreURI, error) {
	switch found := schemeOf(base); {
	case base == "" || base == "auto":
		return StoreURI{Kind: "auto"}, nil
	case base == "local" || base == "daemon":
		return StoreURI{Kind: base}, nil
	case found == "local:":
		return storeAt("local", base[len(found):])
	case found == "unix:":
		return storeAt("daemon", base[len(found):])
	case found == "" && strings.Contains(base, "/"):
		root, err := filepath.Abs(base)
		return StoreURI{Kind: "local", Path: root}, err
	}
	return StoreURI{}, fmt.Errorf("unsupported store: it is auto, local, daemon, unix://SOCKET, /DIR or local?root=/DIR")
}

// schemeOf returns the scheme of a URL with its colon.
func schemeOf(text string) string {
	end := strings.IndexByte(text, ':')
	if end <= 0 || text[0] < 'a' || text[0] > 'z' || strings.Trim(text[:end], "abcdefghijklmnopqrstuvwxyz0123456789+.-") != "" {
		return ""
	}
	return text[:end+1]
}

// storeAt reads what stands behind a scheme: nothing, or an absolute path.
func storeAt(kind, rest string) (StoreURI, error) {
	path, err := url.PathUnescape(strings.TrimPrefix(rest, "//"))
	switch {
	case err != nil:
		return StoreURI{}, err
	case path == "":
		return StoreURI{Kind: kind}, nil
	case !filepath.IsAbs(path):
		return StoreURI{}, fmt.Errorf("%q is not an absolute path", path)
	}
	return StoreURI{Kind: kind, Path: filepath.Clean(path)}, nil
}

// ParseQuery reads NAME=VALUE&… as Nix does: words without "=" are ignored, of several
// with one name the first counts, and "+" is no space.
func ParseQuery(query string) (map[string]string, error) {
	values := make(map[string]string)
	for word := range strings.SplitSeq(query, "&") {
		name, text, ok := strings.Cut(word, "=")
		if _, known := values[name]; !ok || known {
			continue
		}
		value, err := url.PathUnescape(text)
		if err != nil {
			return nil, fmt.Errorf("parameter %s: %w", name, err)
		}
		values[name] = value
	}
	return values, nil
}

// String returns the URI as every Nix since 2.4 reads it.
func (u StoreURI) String() string {
	text := u.Kind
	parameters := make(map[string]string, len(u.Parameters)+1)
	if u.Path != "" && u.Kind == "daemon" {
		text = "unix://" + (&url.URL{Path: u.Path}).EscapedPath()
	}
	if u.Path != "" && u.Kind == "local" {
		parameters["root"] = u.Path
	}
	for name, value := range u.Parameters {
		parameters[name] = value
	}
	var words []string
	for name, value := range parameters {
		words = append(words, name+"="+escapeValue(value))
	}
	if len(words) == 0 {
		return text
	}
	slices.Sort(words)
	return text + "?" + strings.Join(words, "&")
}

// escapeValue leaves slashes as they are, and escapes all that a query or a shell might
// take for its own.
func escapeValue(value string) string {
	return strings.ReplaceAll(strings.ReplaceAll(url.QueryEscape(value), "+", "%20"), "%2F", "/")
}

// IsInconsequential reports whether a parameter that Nix knows for its stores changes nothing
// in what we do.
func IsInconsequential(parameter string) bool {
	return slices.Contains([]string{
		"build-dir", "max-connection-age", "max-connections", "path-info-cache-size", "priority", "system-features", "want-mass-query",
	}, parameter)
}

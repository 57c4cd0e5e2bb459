package show

import (
	"net/url"
	"strings"
)

// plainParameters are the parameters of URLs whose values may be shown: those of Nix's
// stores and of our own. Any other may hold a signature or a password.
var plainParameters = map[string]bool{
	"addressing-style": true, "compress": true, "compression": true, "compression-level": true, "endpoint": true,
	"index-debug-info": true, "multipart-upload": true, "parallel-compression": true, "priority": true, "profile": true,
	"region": true, "remote-program": true, "remote-store": true, "scheme": true, "ssh-key": true, "store": true,
	"trusted": true, "want-mass-query": true, "write-nar-listing": true,
}

const hidden = "xxxxx"

// URL returns the text of a URL, or of what was meant to be one, without its secrets:
// without the fragment, and with xxxxx for user and password and for the values of
// parameters that neither Nix nor we have. The user of an SSH login stays.
func URL(text string) string {
	scheme, rest := "", text
	if before, after, ok := strings.Cut(text, "://"); ok {
		scheme, rest = before+"://", after
	}
	end := strings.IndexAny(rest, "/?#")
	if _, err := url.Parse(text); err != nil || scheme == "" || end < 0 {
		end = len(rest) // a password may hold any character
	}
	if at := strings.LastIndexByte(rest[:end], '@'); at >= 0 && !(isSSH(scheme) && !strings.Contains(rest[:at], ":")) {
		rest = hidden + rest[at:]
	}
	rest, _, _ = strings.Cut(rest, "#")
	place, query, asks := strings.Cut(rest, "?")
	if asks {
		place += "?" + showQuery(query)
	}
	return scheme + place
}

func isSSH(scheme string) bool {
	return scheme == "ssh://" || scheme == "ssh-ng://" || scheme == "sftp://"
}

func showQuery(query string) string {
	words := strings.Split(query, "&")
	for i, word := range words {
		key, value, given := strings.Cut(word, "=")
		switch {
		case !given: // a token may stand alone
			words[i] = hidden
		case plainParameters[key]:
			if plain, err := url.QueryUnescape(value); err == nil {
				value = plain
			}
			words[i] = key + "=" + URL(value)
		default:
			words[i] = key + "=" + hidden
		}
	}
	return strings.Join(words, "&")
}

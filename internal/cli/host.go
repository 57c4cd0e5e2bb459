package cli

import (
	"fmt"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nixconf"
	"github.com/copy-closure/copy-closure/internal/show"
	"github.com/copy-closure/copy-closure/transport"
)

// A hostURI is the far end as named on the command line: [user@]host[:port], or
// ssh:// or ssh-ng:// with Nix's parameters.
type hostURI struct {
	name        string // for messages
	destination transport.Destination
	worker      bool   // ssh-ng://: through nix-daemon's protocol
	program     string // remote-program
	store       string // remote-store
	compress    bool
	keyFile     string // ssh-key
	hostKey     string // base64-ssh-public-host-key
}

// parseHost reads a far end.
func parseHost(text string) (*hostURI, error) {
	h := new(hostURI)
	rest, query, _ := strings.Cut(text, "?")
	if scheme, after, ok := strings.Cut(rest, "://"); ok {
		switch scheme {
		case "ssh":
		case "ssh-ng":
			h.worker = true
		default:
			return nil, fmt.Errorf("%q: a host is [user@]host[:port], ssh://[user@]host[:port] or ssh-ng://[user@]host[:port], not %s://", show.URL(text), scheme)
		}
		rest = strings.TrimSuffix(after, "/")
	}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 && strings.Contains(rest[:at], ":") {
		return nil, fmt.Errorf("host %s: a password cannot stand before the host; it is asked for at the terminal", rest[at+1:])
	}
	var err error
	if h.destination, err = transport.ParseDestination(rest); err != nil {
		return nil, err
	}
	h.name = h.destination.String()
	values, err := nixconf.ParseQuery(query)
	if err != nil {
		return nil, fmt.Errorf("%q: its parameters are not in the form NAME=VALUE&…", show.URL(text))
	}
	for key, value := range values {
		if err := h.set(key, value); err != nil {
			return nil, fmt.Errorf("%q: %w", show.URL(text), err)
		}
	}
	return h, nil
}

// farStore writes local://DIR in the form that old versions of Nix know, too. What the
// far end makes of other stores is its own affair.
func farStore(text string) string {
	if !strings.HasPrefix(text, "local:") {
		return text
	}
	u, err := nixconf.ParseStoreURI(text)
	if err != nil {
		return text
	}
	return u.String()
}

// set applies one parameter of the URI; the names are Nix's.
func (h *hostURI) set(key, value string) error {
	switch {
	case nixconf.IsInconsequential(key):
	case key == "trusted": // where another store takes from this one without signatures
		_, err := nixconf.ParseBool(value)
		return err
	case key == "remote-program":
		h.program = value
	case key == "remote-store":
		h.store = farStore(value)
	case key == "compress":
		var err error
		if h.compress, err = nixconf.ParseBool(value); err != nil {
			return fmt.Errorf("compress: %w", err)
		}
	case key == "ssh-key":
		h.keyFile = value
	case key == "base64-ssh-public-host-key":
		h.hostKey = value
	default:
		return fmt.Errorf("unknown parameter %q: there are remote-program, remote-store, compress, ssh-key and base64-ssh-public-host-key", key)
	}
	return nil
}

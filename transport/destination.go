package transport

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"unicode"
)

// A Destination is a host as the user named it: an alias of his ssh_config, a host
// name or an address.
type Destination struct {
	User string // empty: as the configuration says
	Host string // without brackets
	Port int    // 0: as the configuration says
}

// ParseDestination reads [user@]host[:port]. An IPv6 address with a port stands in
// brackets. What ssh refuses as a host or user name is refused here too: names
// beginning with a dash, control characters, characters special to a shell.
func ParseDestination(s string) (Destination, error) {
	d, err := splitDestination(s)
	if err == nil {
		err = d.check()
	}
	if err != nil {
		return Destination{}, fmt.Errorf("host %q: %w", s, err)
	}
	return d, nil
}

func splitDestination(s string) (d Destination, err error) {
	host := s
	if at := strings.LastIndexByte(s, '@'); at >= 0 {
		if at == 0 {
			return d, fmt.Errorf("empty user name")
		}
		d.User, host = s[:at], s[at+1:]
	}
	d.Host = host
	port := ""
	switch {
	case strings.HasPrefix(host, "["):
		end := strings.IndexByte(host, ']')
		if end < 0 {
			return d, fmt.Errorf("missing ]")
		}
		d.Host, port = host[1:end], host[end+1:]
		if port != "" && port[0] != ':' {
			return d, fmt.Errorf("unexpected text after ]")
		}
	case strings.Count(host, ":") == 1:
		colon := strings.IndexByte(host, ':')
		d.Host, port = host[:colon], host[colon:]
	}
	if port == "" {
		return d, nil
	}
	d.Port, err = parsePort(port[1:])
	return d, err
}

func parsePort(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %q is not a number from 1 to 65535", s)
	}
	return int(n), nil
}

// check follows valid_hostname and valid_ruser of OpenSSH's ssh.c.
func (d Destination) check() error {
	if d.Host == "" {
		return fmt.Errorf("empty host name")
	}
	if d.Host[0] == '-' || strings.HasPrefix(d.User, "-") {
		return fmt.Errorf("begins with a dash")
	}
	if d.Port < 0 || d.Port > 65535 {
		return fmt.Errorf("port %d is out of range", d.Port)
	}
	for _, r := range d.Host {
		if unicode.IsControl(r) || unicode.IsSpace(r) || strings.ContainsRune("'`\"$\\;&<>|(){},@[]", r) {
			return fmt.Errorf("the host name contains %q", r)
		}
	}
	if strings.Contains(d.Host, ":") && net.ParseIP(strings.SplitN(d.Host, "%", 2)[0]) == nil {
		return fmt.Errorf("not an IPv6 address, and more than one colon")
	}
	for _, r := range d.User {
		if unicode.IsControl(r) || unicode.IsSpace(r) || strings.ContainsRune("'`\";&<>|(){}", r) {
			return fmt.Errorf("the user name contains %q", r)
		}
	}
	if strings.HasSuffix(d.User, `\`) {
		return fmt.Errorf("the user name ends with a backslash")
	}
	return nil
}

// String returns d as ParseDestination reads it.
func (d Destination) String() string {
	var b strings.Builder
	if d.User != "" {
		b.WriteString(d.User + "@")
	}
	if strings.Contains(d.Host, ":") {
		b.WriteString("[" + d.Host + "]")
	} else {
		b.WriteString(d.Host)
	}
	if d.Port != 0 {
		b.WriteString(":" + strconv.Itoa(d.Port))
	}
	return b.String()
}

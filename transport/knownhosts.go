package transport

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"
)

// knownHosts is what known_hosts files say. The library of golang.org/x/crypto is
// not used for them: it refuses a whole file for one line that it does not know,
// takes @revoked for all hosts, and cannot say which key types to ask for.
type knownHosts []knownKey

// A knownKey is a line of a known_hosts file.
type knownKey struct {
	marker   string // "", cert-authority or revoked
	patterns []string
	key      ssh.PublicKey
	file     string
	line     int

	elsewhere bool // it is about another port of the host
}

// knownHostsName is the name of a host in known_hosts files.
func knownHostsName(host string, port int) string {
	host = strings.ToLower(host)
	if port == defaultPort {
		return host
	}
	return "[" + host + "]:" + strconv.Itoa(port)
}

// readKnownHosts reads those of the files that are there. As in OpenSSH, lines that
// make no sense are passed over: that can only make a host unknown.
func readKnownHosts(files []string) (knownHosts, error) {
	var all knownHosts
	for _, file := range files {
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("known hosts: %w", err)
		}
		all = append(all, parseKnownHosts(file, data)...)
	}
	return all, nil
}

func parseKnownHosts(file string, data []byte) knownHosts {
	var all knownHosts
	number := 0
	for line := range bytes.Lines(data) {
		number++
		marker, patterns, key, _, _, err := ssh.ParseKnownHosts(line)
		if err != nil {
			continue
		}
		all = append(all, knownKey{marker: marker, patterns: patterns, key: key, file: file, line: number})
	}
	return all
}

// matching returns the entries for a host. What is known about the name without a
// port may speak for the host on any port, but is no evidence against it.
func (k knownHosts) matching(c *hostConfig) knownHosts {
	found := k.named(c.knownHostsName())
	if c.hostKeyAlias != "" || c.port == defaultPort {
		return found
	}
	for _, entry := range k.named(strings.ToLower(c.hostName)) {
		entry.elsewhere = true
		found = append(found, entry)
	}
	return found
}

// plain reports whether the entry is the host's own key.
func (k knownKey) plain() bool { return k.marker == "" }

func (k knownHosts) named(name string) knownHosts {
	var found knownHosts
	for _, entry := range k {
		if entry.matches(name) {
			found = append(found, entry)
		}
	}
	return found
}

// matches reports whether the entry is about the host of that name.
func (k knownKey) matches(name string) bool {
	matched := false
	for _, pattern := range k.patterns {
		if strings.HasPrefix(pattern, "|") {
			matched = matched || hashMatches(pattern, name)
			continue
		}
		pattern, negated := strings.CutPrefix(strings.ToLower(pattern), "!")
		if wildcardMatches(pattern, name) {
			if negated {
				return false
			}
			matched = true
		}
	}
	return matched
}

// hashMatches compares with a hashed name: |1|salt|HMAC-SHA1 of the name|.
func hashMatches(pattern, name string) bool {
	parts := strings.Split(pattern, "|")
	if len(parts) != 4 || parts[1] != "1" {
		return false
	}
	salt, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil {
		return false
	}
	sum, err := base64.StdEncoding.DecodeString(parts[3])
	return err == nil && hmac.Equal(sum, hostHash(salt, name))
}

func hostHash(salt []byte, name string) []byte {
	mac := hmac.New(sha1.New, salt)
	mac.Write([]byte(name))
	return mac.Sum(nil)
}

// wildcardMatches matches * and ?. Its time is bounded by the product of the
// lengths: after a mismatch only the last * is tried further.
func wildcardMatches(pattern, name string) bool {
	p, n, star, from := 0, 0, -1, 0
	for n < len(name) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, n
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == name[n]):
			p++
			n++
		case star >= 0:
			from++
			p, n = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// A hostKeyCheck decides about the key of one host.
type hostKeyCheck struct {
	config *hostConfig
	known  knownHosts // the entries for this host
	ask    Prompter   // nil: nobody is there
	warn   func(string)

	accepted ssh.PublicKey // the key that was let through
	verified bool          // it is known, the person confirmed it, or it was remembered as accept-new says
	err      error         // why none was let through
}

// algorithms returns the order in which to ask for host keys: those that the known
// entries can prove first, so that a host with several keys is not taken for another.
func (h *hostKeyCheck) algorithms() []string {
	var first, rest []string
	for _, name := range h.config.hostKeyAlgorithms {
		if h.provable(name) {
			first = append(first, name)
		} else {
			rest = append(rest, name)
		}
	}
	return append(first, rest...)
}

func (h *hostKeyCheck) provable(algorithm string) bool {
	certificate := strings.Contains(algorithm, "-cert-v01@")
	return slices.ContainsFunc(h.known, func(k knownKey) bool {
		switch k.marker {
		case "cert-authority":
			return certificate
		case "":
			return !certificate && k.key.Type() == keyType(algorithm)
		}
		return false
	})
}

// keyType returns the type of the keys that sign with an algorithm.
func keyType(algorithm string) string {
	switch algorithm {
	case ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512:
		return ssh.KeyAlgoRSA
	}
	return algorithm
}

// check is called with the key that the host has proved to own: at the beginning,
// and whenever the keys of the stream are exchanged.
func (h *hostKeyCheck) check(ctx context.Context, key ssh.PublicKey) error {
	if h.accepted != nil {
		if !sameKey(h.accepted, key) {
			return errors.New("the host came with another host key in the middle of the connection")
		}
		return nil
	}
	if h.err = h.decide(ctx, key); h.err == nil {
		h.accepted = key
	}
	return h.err
}

func (h *hostKeyCheck) decide(ctx context.Context, key ssh.PublicKey) error {
	if err := h.config.checkRSASize(key); err != nil {
		return h.problem(HostKeyInvalid, key, nil, err)
	}
	if cert, ok := key.(*ssh.Certificate); ok {
		if h.authority(cert.SignatureKey) {
			return h.checkCertificate(cert)
		}
		key = cert.Key // as good as without a certificate
	}
	var other *knownKey
	for i, entry := range h.known {
		switch {
		case entry.marker == "revoked" && sameKey(entry.key, key):
			return h.problem(HostKeyRevoked, key, &entry, nil)
		case entry.plain() && !entry.elsewhere && other == nil:
			other = &h.known[i]
		}
	}
	if slices.ContainsFunc(h.known, func(k knownKey) bool { return k.plain() && sameKey(k.key, key) }) {
		h.verified = true
		return nil
	}
	if other != nil {
		return h.changed(key, other)
	}
	return h.unknown(ctx, key)
}

func sameKey(a, b ssh.PublicKey) bool { return bytes.Equal(a.Marshal(), b.Marshal()) }

func (h *hostKeyCheck) authority(key ssh.PublicKey) bool {
	return slices.ContainsFunc(h.known, func(k knownKey) bool {
		return k.marker == "cert-authority" && sameKey(k.key, key)
	})
}

func (h *hostKeyCheck) checkCertificate(cert *ssh.Certificate) error {
	for _, entry := range h.known {
		if entry.marker == "revoked" && (sameKey(entry.key, cert.Key) || sameKey(entry.key, cert.SignatureKey)) {
			return h.problem(HostKeyRevoked, cert, &entry, nil)
		}
	}
	if err := h.config.checkRSASize(cert.SignatureKey); err != nil {
		return h.problem(HostKeyInvalid, cert, nil, fmt.Errorf("its certificate is signed with %w", err))
	}
	if cert.CertType != ssh.HostCert {
		return h.problem(HostKeyInvalid, cert, nil, errors.New("its certificate is not one for hosts"))
	}
	if format := cert.Signature.Format; !slices.Contains(h.config.caSignatures, format) {
		return h.problem(HostKeyInvalid, cert, nil, fmt.Errorf("its certificate is signed with %s, which CASignatureAlgorithms does not allow", format))
	}
	principal := h.config.hostName
	if h.config.hostKeyAlias != "" {
		principal = h.config.hostKeyAlias
	}
	if err := new(ssh.CertChecker).CheckCert(principal, cert); err != nil {
		return h.problem(HostKeyInvalid, cert, nil, err)
	}
	h.verified = true
	return nil
}

func (h *hostKeyCheck) problem(p HostKeyProblem, key ssh.PublicKey, entry *knownKey, err error) error {
	if cert, ok := key.(*ssh.Certificate); ok {
		key = cert.Key
	}
	e := &HostKeyError{Problem: p, Host: h.config.knownHostsName(), KeyType: key.Type(), Fingerprint: ssh.FingerprintSHA256(key), Err: err}
	if entry != nil {
		e.File, e.Line = entry.file, entry.line
	}
	return e
}

// changed decides about a key where another one is known.
func (h *hostKeyCheck) changed(key ssh.PublicKey, other *knownKey) error {
	err := h.problem(HostKeyChanged, key, other, nil)
	if h.config.strictHostKeys != "no" {
		return err
	}
	// As in OpenSSH the connection is allowed, but no secret goes over it.
	h.warn(fmt.Sprintf("%v; connecting without passwords, as StrictHostKeyChecking is no", err))
	return nil
}

// unknown decides about a key of a host that nothing is known of.
func (h *hostKeyCheck) unknown(ctx context.Context, key ssh.PublicKey) error {
	verified := false
	switch h.config.strictHostKeys {
	case "no":
	case "accept-new":
		verified = !unchecked(h.config.strictHostKeys, h.config.userKnownHosts)
	case "ask":
		if h.ask == nil {
			return h.problem(HostKeyUnknown, key, nil, nil)
		}
		yes, err := h.ask.Confirm(ctx, fmt.Sprintf("The host %s is not known. Its %s key is\n%s\nConnect to it, and remember the key?",
			h.config.knownHostsName(), key.Type(), ssh.FingerprintSHA256(key)))
		if err != nil {
			return err
		}
		if !yes {
			return h.problem(HostKeyUnknown, key, nil, nil)
		}
		verified = true
	default:
		return h.problem(HostKeyUnknown, key, nil, nil)
	}
	if err := h.remember(key); err != nil {
		h.warn(fmt.Sprintf("the key of %s could not be saved: %v", h.config.knownHostsName(), err))
		verified = verified && h.config.strictHostKeys == "ask"
	}
	h.verified = verified
	return nil
}

// unchecked reports whether these settings let any host in whose key is not known:
// always with StrictHostKeyChecking no, and with accept-new where nothing remembers the
// first key, so that every key is a first one.
func unchecked(strict string, userKnownHosts []string) bool {
	switch strict {
	case "no":
		return true
	case "accept-new":
		return len(userKnownHosts) == 0 || userKnownHosts[0] == os.DevNull
	}
	return false
}

// remember adds the key to the first of the user's known_hosts files.
func (h *hostKeyCheck) remember(key ssh.PublicKey) error {
	if len(h.config.userKnownHosts) == 0 {
		return nil
	}
	file := h.config.userKnownHosts[0]
	name := h.config.knownHostsName()
	if h.config.hashKnownHosts {
		name = hashedName(name)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	line := name + " " + string(ssh.MarshalAuthorizedKey(key))
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if unfinished(f) {
		line = "\n" + line
	}
	_, err = f.WriteString(line)
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

// unfinished reports whether the last line of f has no end.
func unfinished(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return false
	}
	last := make([]byte, 1)
	_, err = f.ReadAt(last, info.Size()-1)
	return err == nil && last[0] != '\n'
}

func hashedName(name string) string {
	salt := make([]byte, sha1.Size)
	rand.Read(salt)
	enc := base64.StdEncoding.EncodeToString
	return "|1|" + enc(salt) + "|" + enc(hostHash(salt, name))
}

// pinnedHost returns the known_hosts of a host whose key is given by the store's
// base64-ssh-public-host-key: the base64 of a line "TYPE KEY".
func pinnedHost(c *hostConfig, encoded string) (knownHosts, error) {
	line, err := decodeHostKey(encoded)
	if err != nil {
		return nil, err
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		return nil, fmt.Errorf("host key of the store parameters: %w", err)
	}
	return knownHosts{{patterns: []string{c.knownHostsName()}, key: key, file: "the store parameter base64-ssh-public-host-key", line: 1}}, nil
}

func decodeHostKey(encoded string) ([]byte, error) {
	line, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if err != nil {
		return nil, fmt.Errorf("host key of the store parameters: %w", err)
	}
	return bytes.TrimSpace(line), nil
}

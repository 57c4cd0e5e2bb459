package transport

import (
	"crypto/rsa"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"
)

// minRSASize is RequiredRSASize where nothing says otherwise, as in OpenSSH.
const minRSASize = 1024

// readAlgorithms keeps of the lists that hold for the user's ssh what the built-in
// client has, in the user's order. What the library has and calls insecure is not
// used, even if ssh would: a host that has nothing else is reached by ssh. A reason
// that is not empty names a list that only ssh can honour.
func (c *hostConfig) readAlgorithms(s, defaults settings) (reason string) {
	have := ssh.SupportedAlgorithms()
	for _, a := range []struct {
		name      string
		target    *[]string
		supported []string
		whole     bool // ssh is needed for whatever the user added to the default
	}{
		{"Ciphers", &c.ciphers, have.Ciphers, false},
		{"KexAlgorithms", &c.kexAlgorithms, have.KeyExchanges, false},
		{"MACs", &c.macs, have.MACs, false},
		{"HostKeyAlgorithms", &c.hostKeyAlgorithms, have.HostKeys, false},
		{"PubkeyAcceptedAlgorithms", &c.pubkeyAlgorithms, withCertificateNames(have.PublicKeyAuths), true},
		{"CASignatureAlgorithms", &c.caSignatures, have.PublicKeyAuths, true},
	} {
		key := strings.ToLower(a.name)
		value := s.first(key)
		if value == "" { // there is no ssh that could say it
			*a.target = a.supported
			continue
		}
		if strings.ContainsAny(value, "+^*?!") || value[0] == '-' {
			return s.tell(a.name)
		}
		usual := strings.Split(defaults.first(key), ",")
		for name := range strings.SplitSeq(value, ",") {
			switch {
			case slices.Contains(a.supported, name):
				*a.target = append(*a.target, name)
			case a.whole && defaults != nil && !slices.Contains(usual, name):
				return fmt.Sprintf("%s has %s", a.name, name)
			}
		}
		if len(*a.target) == 0 {
			return s.tell(a.name)
		}
	}
	c.anyCipherOrder = s.first("ciphers") == defaults.first("ciphers")
	c.minRSASize = minRSASize
	if n, err := strconv.Atoi(s.first("requiredrsasize")); err == nil {
		c.minRSASize = n
	}
	return ""
}

// certificateNames are the algorithms of keys that are certified by another one.
var certificateNames = map[string]string{
	ssh.KeyAlgoRSA:        ssh.CertAlgoRSAv01,
	ssh.KeyAlgoRSASHA256:  ssh.CertAlgoRSASHA256v01,
	ssh.KeyAlgoRSASHA512:  ssh.CertAlgoRSASHA512v01,
	ssh.KeyAlgoECDSA256:   ssh.CertAlgoECDSA256v01,
	ssh.KeyAlgoECDSA384:   ssh.CertAlgoECDSA384v01,
	ssh.KeyAlgoECDSA521:   ssh.CertAlgoECDSA521v01,
	ssh.KeyAlgoED25519:    ssh.CertAlgoED25519v01,
	ssh.KeyAlgoSKED25519:  ssh.CertAlgoSKED25519v01,
	ssh.KeyAlgoSKECDSA256: ssh.CertAlgoSKECDSA256v01,
}

func withCertificateNames(algorithms []string) []string {
	all := slices.Clone(algorithms)
	for _, name := range algorithms {
		if certified, ok := certificateNames[name]; ok {
			all = append(all, certified)
		}
	}
	return all
}

// signatureAlgorithms returns those of which a key, or a certificate, may make
// signatures for a log-in, in the order of PubkeyAcceptedAlgorithms.
func (c *hostConfig) signatureAlgorithms(key ssh.PublicKey) []string {
	kind, certified := key.Type(), false
	if cert, ok := key.(*ssh.Certificate); ok {
		kind, certified = cert.Key.Type(), true
	}
	candidates := []string{kind}
	if kind == ssh.KeyAlgoRSA {
		candidates = []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	position := func(algorithm string) int {
		if certified {
			algorithm = certificateNames[algorithm]
		}
		return slices.Index(c.pubkeyAlgorithms, algorithm)
	}
	candidates = slices.DeleteFunc(candidates, func(algorithm string) bool { return position(algorithm) < 0 })
	slices.SortFunc(candidates, func(a, b string) int { return position(a) - position(b) })
	return candidates
}

// checkRSASize returns an error if key, or the key in a certificate, is an RSA key
// below RequiredRSASize.
func (c *hostConfig) checkRSASize(key ssh.PublicKey) error {
	if cert, ok := key.(*ssh.Certificate); ok {
		key = cert.Key
	}
	public, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return nil
	}
	if key, ok := public.CryptoPublicKey().(*rsa.PublicKey); ok && key.N.BitLen() < c.minRSASize {
		return fmt.Errorf("an RSA key of %d bits, and RequiredRSASize is %d", key.N.BitLen(), c.minRSASize)
	}
	return nil
}

package transport

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// keyFileMax is the most that is read of a key file.
const keyFileMax = 1 << 20

// An identity is a key, or its certificate, to log in with.
type identity struct {
	ssh.MultiAlgorithmSigner
	name string // for errors: where it comes from
}

func (i identity) String() string {
	return fmt.Sprintf("key %s (%s)", ssh.FingerprintSHA256(i.PublicKey()), i.name)
}

// A candidate may become an identity.
type candidate struct {
	signer ssh.Signer
	name   string
}

// identity returns the candidate with the algorithms that it may be used with, or an
// error if ssh would not use it at all.
func (k candidate) identity(c *hostConfig) (identity, error) {
	public := k.signer.PublicKey()
	if held, ok := public.(*agent.Key); ok {
		var err error
		if public, err = ssh.ParsePublicKey(held.Blob); err != nil {
			return identity{}, err
		}
	}
	if err := c.checkRSASize(public); err != nil {
		return identity{}, err
	}
	algorithms := c.signatureAlgorithms(public)
	signer, ok := k.signer.(ssh.AlgorithmSigner)
	if !ok || len(algorithms) == 0 {
		return identity{}, fmt.Errorf("PubkeyAcceptedAlgorithms has nothing for keys of type %s", public.Type())
	}
	restricted, err := ssh.NewSignerWithAlgorithms(signer, algorithms)
	return identity{restricted, k.name}, err
}

// A keyFile is a private key in a file. Its public half is known without the
// passphrase, which is asked for when the host has agreed to the key.
type keyFile struct {
	path   string
	public ssh.PublicKey
	locked bool // needs a passphrase
	unlock func() (ssh.AlgorithmSigner, error)
}

func (k *keyFile) PublicKey() ssh.PublicKey { return k.public }

func (k *keyFile) Sign(rand io.Reader, data []byte) (*ssh.Signature, error) {
	return k.SignWithAlgorithm(rand, data, k.Algorithms()[0])
}

func (k *keyFile) SignWithAlgorithm(rand io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	signer, err := k.unlock()
	if err != nil {
		return nil, err
	}
	return signer.SignWithAlgorithm(rand, data, algorithm)
}

// Algorithms implements ssh.MultiAlgorithmSigner.
func (k *keyFile) Algorithms() []string {
	if k.public.Type() == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	return []string{k.public.Type()}
}

// A keyring reads key files, each once, and asks for each passphrase once.
type keyring struct {
	ask   Prompter // nil: nobody is there
	files map[string]*keyFile
}

// load returns nil if there is no such file.
func (r *keyring) load(ctx context.Context, path string, tries int) (*keyFile, error) {
	if k, ok := r.files[path]; ok {
		return k, nil
	}
	data, err := readKeyFile(path)
	if err != nil || data == nil {
		return nil, err
	}
	k, err := parseKeyFile(path, data)
	if err != nil {
		return nil, err
	}
	if k.locked {
		k.unlock = sync.OnceValues(func() (ssh.AlgorithmSigner, error) {
			return r.openLocked(ctx, path, data, tries)
		})
	}
	r.files[path] = k
	return k, nil
}

func readKeyFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, keyFileMax))
}

// errSecurityKey says that a key cannot be used without its hardware.
var errSecurityKey = errors.New("it is a security key")

func parseKeyFile(path string, data []byte) (*keyFile, error) {
	k := &keyFile{path: path}
	if public := openSSHPublicKey(data); public != nil {
		if strings.HasPrefix(public.Type(), "sk-") {
			return nil, errSecurityKey
		}
		k.public = public
	}
	private, err := ssh.ParsePrivateKey(data)
	if err == nil {
		signer, ok := private.(ssh.AlgorithmSigner)
		if !ok {
			return nil, fmt.Errorf("unusable key type %s", private.PublicKey().Type())
		}
		k.public = private.PublicKey()
		k.unlock = func() (ssh.AlgorithmSigner, error) { return signer, nil }
		return k, nil
	}
	if _, ok := errors.AsType[*ssh.PassphraseMissingError](err); !ok {
		return nil, err
	}
	k.locked = true
	if k.public == nil {
		k.public, err = readPublicKey(path + ".pub")
		if err != nil {
			return nil, fmt.Errorf("its public half is needed before its passphrase: ssh-keygen -y -f %s > %s.pub", path, path)
		}
	}
	return k, nil
}

// openLocked asks for the passphrase until it fits.
func (r *keyring) openLocked(ctx context.Context, path string, data []byte, tries int) (ssh.AlgorithmSigner, error) {
	if r.ask == nil {
		return nil, fmt.Errorf("key %s needs a passphrase", path)
	}
	for range tries {
		passphrase, err := r.ask.Password(ctx, fmt.Sprintf("Passphrase for the key %s: ", path))
		if err != nil {
			return nil, err
		}
		private, err := ssh.ParsePrivateKeyWithPassphrase(data, []byte(passphrase))
		if err != nil {
			continue
		}
		if signer, ok := private.(ssh.AlgorithmSigner); ok {
			return signer, nil
		}
	}
	return nil, fmt.Errorf("key %s: wrong passphrase", path)
}

// openSSHPublicKey returns the public half that OpenSSH's private key format carries
// in the clear, nil if data is no such file. The format: "openssh-key-v1\0", strings
// cipher, kdf and kdf options, a count, the public keys, the private part.
func openSSHPublicKey(data []byte) ssh.PublicKey {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "OPENSSH PRIVATE KEY" {
		return nil
	}
	rest, ok := bytes.CutPrefix(block.Bytes, []byte("openssh-key-v1\x00"))
	if !ok {
		return nil
	}
	var header struct {
		Cipher, KDF, Options string
		Keys                 uint32
		Public               []byte
		Rest                 []byte `ssh:"rest"`
	}
	if ssh.Unmarshal(rest, &header) != nil || header.Keys != 1 {
		return nil
	}
	key, err := ssh.ParsePublicKey(header.Public)
	if err != nil {
		return nil
	}
	return key
}

func readPublicKey(path string) (ssh.PublicKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(data)
	return key, err
}

// identities is what a host may be offered, in order.
type identities struct {
	all    []identity
	notes  []string // what is not among them, and why
	reason string   // why only OpenSSH can do this; empty if we can
	agent  net.Conn // keep open as long as the identities are used; nil if there is none
}

func (i *identities) close() {
	if i.agent != nil {
		i.agent.Close()
	}
}

// dropSecurityKeys leaves out what an agent has of keys that are touched to be used.
func (i *identities) dropSecurityKeys() {
	i.all = slices.DeleteFunc(i.all, func(id identity) bool { return strings.HasPrefix(id.PublicKey().Type(), "sk-") })
}

// findIdentities collects the keys for a host: those of the configuration that the
// agent holds; then those in files, if the user named them and they need no
// passphrase; then what else the agent holds; then the other files. OpenSSH has the
// two in the middle the other way round, which costs a round trip for every key of
// the agent that the host does not know.
func findIdentities(ctx context.Context, c *hostConfig, ring *keyring, log *slog.Logger) *identities {
	found := &identities{}
	if !slices.Contains(c.methods, "publickey") {
		return found
	}
	held := found.askAgent(ctx, c, log)
	certificates := readCertificates(c, log)
	var named, own, late []candidate
	for _, path := range c.identityFiles {
		public, signer := found.fromFile(ctx, c, ring, path, held)
		if signer == nil {
			continue
		}
		all := withCertificates(candidate{signer, path}, certificates[string(public.Marshal())])
		file, isFile := signer.(*keyFile)
		switch {
		case !isFile:
			named = append(named, all...)
		case c.ownIdentities && !file.locked:
			own = append(own, all...)
		default:
			late = append(late, all...)
		}
	}
	var others []candidate
	if !c.identitiesOnly {
		others = remaining(held, named)
	}
	for _, key := range slices.Concat(named, own, others, late) {
		if usable, err := key.identity(c); err == nil {
			found.all = append(found.all, usable)
		} else {
			found.notes = append(found.notes, fmt.Sprintf("key %s was not used: %v", key.name, err))
		}
	}
	return found
}

// askAgent returns what the agent holds.
func (i *identities) askAgent(ctx context.Context, c *hostConfig, log *slog.Logger) []ssh.Signer {
	if c.agent == "" {
		return nil
	}
	conn, err := DialUnix(ctx, c.agent)
	if err != nil {
		log.Debug("no ssh agent", "error", err)
		return nil
	}
	signers, err := agent.NewClient(conn).Signers()
	if err != nil {
		log.Debug("ssh agent does not answer", "error", err)
		conn.Close()
		return nil
	}
	i.agent = conn
	return signers
}

// fromFile returns the key of an IdentityFile, by the agent where that holds it. The
// file may be only the public half of such a key.
func (i *identities) fromFile(ctx context.Context, c *hostConfig, ring *keyring, path string, held []ssh.Signer) (ssh.PublicKey, ssh.Signer) {
	file, err := ring.load(ctx, path, c.prompts)
	var public ssh.PublicKey
	switch {
	case file != nil:
		public = file.public
	default:
		if public, _ = readPublicKey(path); public == nil {
			public, _ = readPublicKey(path + ".pub")
		}
	}
	if public != nil {
		for _, signer := range held {
			if sameKey(signer.PublicKey(), public) {
				return public, signer
			}
		}
	}
	switch {
	case errors.Is(err, errSecurityKey):
		i.reason = fmt.Sprintf("%s is a security key, and not in the agent", path)
	case err != nil && public == nil:
		i.notes = append(i.notes, fmt.Sprintf("key %s was not used: %v", path, err))
	case file != nil && file.locked && ring.ask == nil:
		i.notes = append(i.notes, fmt.Sprintf("key %s was not used: it needs a passphrase, and nobody is there to be asked", path))
	case file != nil:
		return public, file
	}
	return nil, nil
}

// readCertificates returns the certificates that the configuration names or that lie
// beside the keys, by the key that they are for.
func readCertificates(c *hostConfig, log *slog.Logger) map[string][]*ssh.Certificate {
	paths := slices.Clone(c.certificateFiles)
	for _, path := range c.identityFiles {
		paths = append(paths, path+"-cert.pub")
	}
	found := map[string][]*ssh.Certificate{}
	for _, path := range paths {
		key, err := readPublicKey(path)
		if err != nil {
			if !errors.Is(err, os.ErrNotExist) {
				log.Debug("certificate not usable", "file", path, "error", err)
			}
			continue
		}
		if cert, ok := key.(*ssh.Certificate); ok {
			of := string(cert.Key.Marshal())
			found[of] = append(found[of], cert)
		}
	}
	return found
}

// withCertificates puts the certificates of a key before the key.
func withCertificates(key candidate, certificates []*ssh.Certificate) []candidate {
	var all []candidate
	for _, cert := range certificates {
		if signer, err := ssh.NewCertSigner(cert, key.signer); err == nil {
			all = append(all, candidate{signer, fmt.Sprintf("certificate %q for %s", cert.KeyId, key.name)})
		}
	}
	return append(all, key)
}

// remaining returns the keys of the agent that are not among those named.
func remaining(held []ssh.Signer, named []candidate) []candidate {
	var all []candidate
	for _, signer := range held {
		if !slices.ContainsFunc(named, func(n candidate) bool { return sameKey(n.signer.PublicKey(), signer.PublicKey()) }) {
			all = append(all, candidate{signer, "from the agent"})
		}
	}
	return all
}

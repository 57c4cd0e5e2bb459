package transport

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// A login is one attempt to be let in by a host.
type login struct {
	client *client
	config *hostConfig
	keys   *identities
	ask    Prompter // nil: nobody is there
	check  *hostKeyCheck
	watch  *handshakeWatch

	proved  time.Time // when the host key was accepted
	tried   []string
	offered []string // what the host last said it would take
}

// sshConfig puts together what the library wants to know.
func (l *login) sshConfig(ctx context.Context) *ssh.ClientConfig {
	config := &ssh.ClientConfig{
		User:              l.config.user,
		Auth:              l.methods(ctx),
		ClientVersion:     "SSH-2.0-copy-closure",
		HostKeyAlgorithms: l.check.algorithms(),
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			return l.hostKey(ctx, key)
		},
		AuthCallback:   l.underWay,
		BannerCallback: l.client.banner,
	}
	// The lists hold nothing that the user's ssh would not take.
	config.Ciphers = cipherOrder(l.config)
	config.KeyExchanges = l.config.kexAlgorithms
	config.MACs = l.config.macs
	config.RekeyThreshold = l.config.rekeyBytes
	return config
}

func (l *login) hostKey(ctx context.Context, key ssh.PublicKey) error {
	l.watch.pause() // somebody may be asked
	defer l.watch.resume(l.config.connectTimeout)
	if l.check.accepted == nil {
		defer func() { l.proved = time.Now() }()
	}
	return l.check.check(ctx, key)
}

// underWay is called before each attempt but the first, which proves nothing.
func (l *login) underWay(state *ssh.ClientAuthContext) (ssh.AuthMethod, error) {
	if l.offered == nil {
		// Two requests have gone there and back since the host key. The time of
		// connecting would only be the way to a proxy, if there is one.
		l.client.sawRoundTrip(time.Since(l.proved) / 2)
	}
	l.offered = state.AllowedMethods
	l.watch.resume(loginTime)
	return nil, nil
}

// methods returns the ways of logging in, in the configured order.
func (l *login) methods(ctx context.Context) []ssh.AuthMethod {
	var all []ssh.AuthMethod
	for _, method := range l.config.methods {
		switch {
		case method == "publickey" && len(l.keys.all) > 0:
			all = append(all, ssh.PublicKeys(l.signers()...))
		case l.ask == nil:
		case method == "password":
			all = append(all, ssh.RetryableAuthMethod(ssh.PasswordCallback(func() (string, error) {
				return l.password(ctx)
			}), l.config.prompts))
		case method == "keyboard-interactive":
			all = append(all, ssh.RetryableAuthMethod(ssh.KeyboardInteractive(
				func(name, instruction string, questions []string, echos []bool) ([]string, error) {
					return l.answer(ctx, name, instruction, questions)
				}), l.config.prompts))
		}
	}
	return all
}

// signers returns the keys, each of which notes when the host is asked about it.
func (l *login) signers() []ssh.Signer {
	var all []ssh.Signer
	for _, key := range l.keys.all {
		all = append(all, notedSigner{key, func() { l.note(key.String()) }})
	}
	return all
}

func (l *login) note(what string) {
	if !slices.Contains(l.tried, what) {
		l.tried = append(l.tried, what)
	}
}

// verified returns an error unless secrets may go to the host.
func (l *login) verified() error {
	if l.check.verified {
		return nil
	}
	return &UnverifiedHostError{Host: l.config.knownHostsName()}
}

func (l *login) password(ctx context.Context) (string, error) {
	if err := l.verified(); err != nil {
		return "", err
	}
	l.note("password")
	return l.ask.Password(ctx, fmt.Sprintf("Password of %s@%s: ", l.config.user, l.config.alias))
}

func (l *login) answer(ctx context.Context, name, instruction string, questions []string) ([]string, error) {
	if err := l.verified(); err != nil {
		return nil, err
	}
	l.note("keyboard-interactive")
	answers := make([]string, len(questions))
	for i, question := range questions {
		// The host chooses the words; the person should see whose they are.
		prompt := fmt.Sprintf("(%s@%s) ", l.config.user, l.config.alias)
		for _, part := range []string{name, instruction, question} {
			if i == 0 || part == question {
				prompt += strings.TrimLeft(part+" ", " ")
			}
		}
		var err error
		if answers[i], err = l.ask.Password(ctx, prompt); err != nil {
			return nil, err
		}
	}
	return answers, nil
}

// refused makes the error of a refused log-in.
func (l *login) refused(err error) error {
	notes := l.keys.notes
	if l.ask == nil && (slices.Contains(l.offered, "password") || slices.Contains(l.offered, "keyboard-interactive")) {
		notes = append(slices.Clone(notes), "nobody is there to be asked for a password")
	}
	if text := err.Error(); !strings.Contains(text, "unable to authenticate") {
		notes = append(slices.Clone(notes), strings.TrimPrefix(text, "ssh: handshake failed: "))
	}
	return &AuthError{
		User:    l.config.user,
		Address: l.config.address(),
		Tried:   l.tried,
		Offered: l.offered,
		Notes:   notes,
		Err:     err,
	}
}

// A notedSigner calls note when the public half of a key is asked for.
type notedSigner struct {
	ssh.MultiAlgorithmSigner
	note func()
}

func (n notedSigner) PublicKey() ssh.PublicKey {
	n.note()
	return n.MultiAlgorithmSigner.PublicKey()
}

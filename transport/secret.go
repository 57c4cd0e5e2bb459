package transport

import "io"

// A Secret is a password for a command at the far end. Only WriteSecret reads it.
type Secret struct{ text string }

// NewSecret returns text as a Secret.
func NewSecret(text string) Secret { return Secret{text} }

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return s.text == "" }

// String keeps the secret out of logs.
func (Secret) String() string { return "(secret)" }

// WriteSecret writes the secret and a line end to the command's standard input. It
// sends nothing and returns an UnverifiedHostError if the host key of the session's
// connection was not verified.
func (s *Session) WriteSecret(secret Secret) error {
	if !s.login.Verified {
		return &UnverifiedHostError{Host: s.login.Address}
	}
	_, err := io.WriteString(s, secret.text+"\n")
	return err
}

package substitute

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/kballard/go-shellquote"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// s3Credentials looks for credentials in the environment, the files of the aws program
// and the virtual machine's metadata; a profile that is named is looked for in the files
// alone.
func s3Credentials(profile string) *credentials.Credentials {
	named := profile != ""
	if profile == "" {
		profile = os.Getenv("AWS_PROFILE")
	}
	if profile == "" {
		profile = "default"
	}
	chain := &s3Keys{others: []credentials.Provider{
		new(credentials.EnvAWS), &credentialProcess{profile: profile}, &credentials.FileAWSCredentials{Profile: profile},
		&credentials.IAM{Client: &http.Client{Timeout: metadataTimeout, CheckRedirect: noRedirect}},
	}}
	if named {
		chain.others = chain.others[1:3]
	}
	return credentials.New(chain)
}

// s3Keys asks providers one after another. Unlike credentials.Chain it fails where a
// profile's credential_process fails: requests without credentials would only be told
// that access is denied.
type s3Keys struct {
	others []credentials.Provider
	used   credentials.Provider // nil: requests are anonymous
}

// RetrieveWithCredContext implements credentials.Provider.
func (k *s3Keys) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	for _, p := range k.others {
		value, err := p.RetrieveWithCredContext(cc)
		var failed *credentialProcessError
		if errors.As(err, &failed) {
			return value, err
		}
		if err == nil && value.AccessKeyID != "" && value.SecretAccessKey != "" {
			k.used = p
			return value, nil
		}
	}
	k.used = nil
	return credentials.Value{SignerType: credentials.SignatureAnonymous}, nil
}

// Retrieve implements credentials.Provider.
func (k *s3Keys) Retrieve() (credentials.Value, error) { return k.RetrieveWithCredContext(nil) }

// IsExpired implements credentials.Provider.
func (k *s3Keys) IsExpired() bool { return k.used == nil || k.used.IsExpired() }

// A credentialProcess is the program that a profile names to get credentials from.
type credentialProcess struct {
	credentials.Expiry
	profile string
}

// A credentialProcessError says that the program of a profile gave no credentials.
type credentialProcessError struct {
	profile string
	err     error
	stderr  string
}

func (e *credentialProcessError) Error() string {
	text := fmt.Sprintf("credential_process of the AWS profile %q: %v", e.profile, e.err)
	if said := strings.TrimSpace(e.stderr); said != "" {
		text += fmt.Sprintf(": %.500q", said)
	}
	return text
}

func (e *credentialProcessError) Unwrap() error { return e.err }

// Retrieve implements credentials.Provider. The value is empty where the profile names
// no program, or something that comes before it.
func (p *credentialProcess) Retrieve() (credentials.Value, error) {
	profile := readAWSProfile(p.profile)
	command := profile["credential_process"]
	if command == "" || profile["aws_access_key_id"] != "" || profile["sso_role_name"] != "" {
		return credentials.Value{}, nil
	}
	value, stderr, err := p.run(command)
	if err != nil {
		return credentials.Value{}, &credentialProcessError{p.profile, err, stderr}
	}
	return value, nil
}

// RetrieveWithCredContext implements credentials.Provider.
func (p *credentialProcess) RetrieveWithCredContext(*credentials.CredContext) (credentials.Value, error) {
	return p.Retrieve()
}

// run starts a command, whose words may be quoted as in a shell, and reads what it
// prints.
func (p *credentialProcess) run(command string) (_ credentials.Value, stderr string, err error) {
	words, err := shellquote.Split(command)
	if err != nil {
		return credentials.Value{}, "", err
	}
	var said bytes.Buffer
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return credentials.Value{}, said.String(), err
	}
	var got struct {
		Version                                    int
		AccessKeyID, SecretAccessKey, SessionToken string
		Expiration                                 *time.Time
	}
	if err := json.Unmarshal(out, &got); err != nil {
		return credentials.Value{}, "", fmt.Errorf("it prints no JSON: %w", err)
	}
	if got.Version != 1 || got.AccessKeyID == "" || got.SecretAccessKey == "" {
		return credentials.Value{}, "", errors.New("it prints no Version 1 with AccessKeyId and SecretAccessKey")
	}
	p.SetExpiration(time.Now().AddDate(1, 0, 0), 0)
	if got.Expiration != nil {
		p.SetExpiration(*got.Expiration, credentials.DefaultExpiryWindow)
	}
	return credentials.Value{
		AccessKeyID: got.AccessKeyID, SecretAccessKey: got.SecretAccessKey, SessionToken: got.SessionToken,
		SignerType: credentials.SignatureV4,
	}, "", nil
}

// readAWSProfile returns the keys of a profile in the files of the aws program. Of a key
// that both files have, that of the credentials file counts.
func readAWSProfile(name string) map[string]string {
	keys := make(map[string]string)
	sections := []string{"profile " + name}
	if name == "default" {
		sections = append(sections, name)
	}
	readAWSFile(keys, "AWS_CONFIG_FILE", "config", sections...)
	readAWSFile(keys, "AWS_SHARED_CREDENTIALS_FILE", "credentials", name)
	return keys
}

// readAWSFile adds the keys of some sections of a file, if it can be read.
func readAWSFile(keys map[string]string, variable, standard string, sections ...string) {
	file := os.Getenv(variable)
	if file == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return
		}
		file = filepath.Join(home, ".aws", standard)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return
	}
	wanted := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if title, ok := strings.CutPrefix(line, "["); ok {
			title, _, _ = strings.Cut(title, "]")
			title = strings.Join(strings.Fields(title), " ")
			wanted = false
			for _, section := range sections {
				wanted = wanted || title == section
			}
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if ok && wanted && line[0] != '#' && line[0] != ';' {
			keys[strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
	}
}

// noRedirect keeps the token for the metadata service from going elsewhere.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

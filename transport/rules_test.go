package transport_test

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/transport"
)

// sshSettings is what the ssh that is installed makes of options; ok is false if it
// does not know one of them.
func sshSettings(t *testing.T, options ...string) (text string, ok bool) {
	t.Helper()
	argv := append([]string{"-F", "none"}, options...)
	out, err := exec.Command(needProgram(t, "ssh"), append(argv, "-G", "localhost")...).Output()
	return string(out), err == nil
}

func keywords(text string) []string {
	var all []string
	for line := range strings.Lines(text) {
		key, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		all = append(all, strings.ToLower(key))
	}
	return all
}

// Each keyword that the ssh of this machine prints has a rule.
func TestEachSettingHasARule(t *testing.T) {
	text, _ := sshSettings(t)
	var rules []string
	for _, name := range transport.Rules() {
		if slices.Contains(rules, strings.ToLower(name)) {
			t.Errorf("%s has two rules", name)
		}
		rules = append(rules, strings.ToLower(name))
	}
	for _, key := range keywords(text) {
		if !slices.Contains(rules, key) {
			t.Errorf("no rule for %s: is it implemented, harmless, or left to ssh?", key)
		}
	}
}

// A value of each setting that is not the default, and whether the built-in client may
// be used with it.
var samples = []struct {
	name, value string
	builtin     bool
}{
	{"AddKeysToAgent", "confirm", true},
	{"AddressFamily", "inet", true},
	{"BatchMode", "yes", true},
	{"BindAddress", "127.0.0.1", true},
	{"BindInterface", "lo", false},
	{"CASignatureAlgorithms", "ssh-ed25519", true},
	{"CASignatureAlgorithms", "+ssh-rsa", false},
	{"CanonicalDomains", "example.org", true},
	{"CanonicalizeFallbackLocal", "no", true},
	{"CanonicalizeHostname", "yes", true},
	{"CanonicalizeMaxDots", "2", true},
	{"CanonicalizePermittedCNAMEs", "*.example.org:*.example.org", true},
	{"CertificateFile", "/x", true},
	{"ChannelTimeout", "session=5m", false},
	{"CheckHostIP", "yes", false},
	{"Ciphers", "aes256-ctr", true},
	{"Ciphers", "aes256-cbc", false},
	{"ClearAllForwardings", "yes", true},
	{"Compression", "yes", false},
	{"ConnectTimeout", "9", true},
	{"ConnectionAttempts", "3", true},
	{"ControlMaster", "auto", true},
	{"ControlPath", "/x/%C", true},
	{"ControlPersist", "60", true},
	{"DynamicForward", "1080", true},
	{"EnableEscapeCommandline", "yes", true},
	{"EnableSSHKeysign", "yes", true},
	{"EscapeChar", "none", true},
	{"ExitOnForwardFailure", "yes", true},
	{"FingerprintHash", "md5", true},
	{"ForkAfterAuthentication", "yes", true},
	{"ForwardAgent", "yes", true},
	{"ForwardX11", "yes", true},
	{"ForwardX11Timeout", "5", true},
	{"ForwardX11Trusted", "no", true},
	{"GatewayPorts", "yes", true},
	{"GlobalKnownHostsFile", "/x", true},
	{"GSSAPIAuthentication", "yes", true},
	{"GSSAPIClientIdentity", "me", true},
	{"GSSAPIDelegateCredentials", "yes", true},
	{"GSSAPIKexAlgorithms", "gss-group16-sha512-", true},
	{"GSSAPIKeyExchange", "yes", true},
	{"GSSAPIRenewalForcesRekey", "yes", true},
	{"GSSAPIServerIdentity", "it", true},
	{"GSSAPITrustDNS", "yes", true},
	{"HashKnownHosts", "yes", true},
	{"HostKeyAlgorithms", "ssh-ed25519", true},
	{"HostKeyAlgorithms", "ssh-rsa", false},
	{"HostKeyAlias", "other", true},
	{"HostName", "other", true},
	{"HostbasedAcceptedAlgorithms", "ssh-ed25519", true},
	{"HostbasedAuthentication", "yes", false},
	{"IPQoS", "none", true},
	{"IPQoS", "cs1", false},
	{"IdentitiesOnly", "yes", true},
	{"IdentityAgent", "/x", true},
	{"IdentityFile", "/x", true},
	{"IgnoreUnknown", "x", true},
	{"KbdInteractiveAuthentication", "no", true},
	{"KbdInteractiveDevices", "pam", false},
	{"KexAlgorithms", "curve25519-sha256", true},
	{"KexAlgorithms", "diffie-hellman-group14-sha1", false},
	{"KnownHostsCommand", "/x", false},
	{"LocalCommand", "true", true},
	{"LocalForward", "1081 localhost:1", true},
	{"LogLevel", "quiet", true},
	{"LogVerbose", "x.c:*", true},
	{"MACs", "hmac-sha2-256", true},
	{"MACs", "hmac-sha1-96", false},
	{"NoHostAuthenticationForLocalhost", "yes", false},
	{"NumberOfPasswordPrompts", "1", true},
	{"ObscureKeystrokeTiming", "no", true},
	{"PKCS11Provider", "/x", false},
	{"PasswordAuthentication", "no", true},
	{"PermitLocalCommand", "yes", true},
	{"PermitRemoteOpen", "none", true},
	{"Port", "2", true},
	{"PreferredAuthentications", "publickey", true},
	{"ProxyCommand", "/x", true},
	{"ProxyJump", "x", true},
	{"ProxyUseFdpass", "yes", false},
	{"PubkeyAcceptedAlgorithms", "ssh-ed25519", true},
	{"PubkeyAcceptedAlgorithms", "+ssh-rsa", false},
	{"PubkeyAuthentication", "no", true},
	{"PubkeyAuthentication", "unbound", true},
	{"PubkeyAuthentication", "host-bound", false},
	{"RefuseConnection", "no", false},
	{"RekeyLimit", "16G", true},
	{"RekeyLimit", "1G 1h", false},
	{"RemoteCommand", "true", true},
	{"RemoteForward", "1082 localhost:1", true},
	{"RequestTTY", "force", true},
	{"RequiredRSASize", "3072", true},
	{"RevokedHostKeys", "/x", false},
	{"SecurityKeyProvider", "/x", true},
	{"SendEnv", "LANG", true},
	{"ServerAliveCountMax", "9", true},
	{"ServerAliveInterval", "9", true},
	{"SessionType", "none", true},
	{"SetEnv", "A=b", true},
	{"StdinNull", "yes", true},
	{"StreamLocalBindMask", "0100", true},
	{"StreamLocalBindUnlink", "yes", true},
	{"StrictHostKeyChecking", "yes", true},
	{"SyslogFacility", "auth", true},
	{"TCPKeepAlive", "no", true},
	{"Tag", "x", true},
	{"Tunnel", "yes", true},
	{"TunnelDevice", "1:1", true},
	{"UpdateHostKeys", "no", true},
	{"User", "x", true},
	{"UserKnownHostsFile", "/x", true},
	{"VerifyHostKeyDNS", "yes", false},
	{"VersionAddendum", "x", false},
	{"VisualHostKey", "yes", true},
	{"WarnWeakCrypto", "no", true},
	{"XAuthLocation", "/x", true},
}

func TestSettingsSelectClient(t *testing.T) {
	defaults, _ := sshSettings(t)
	tried := map[string]bool{"host": true} // only printed
	for _, s := range samples {
		tried[strings.ToLower(s.name)] = true
		text, ok := sshSettings(t, "-o", s.name+"="+s.value)
		if !ok || text == defaults {
			t.Logf("%s %s: the ssh that is installed does not know it, or does not print it", s.name, s.value)
			continue
		}
		reason := transport.OnlyOpenSSH(text, defaults)
		if s.builtin != (reason == "") {
			t.Errorf("%s %s: the reason for ssh is %q", s.name, s.value, reason)
		}
		if !s.builtin && !strings.HasPrefix(strings.ToLower(reason), strings.ToLower(s.name)+" ") {
			t.Errorf("%s %s: the reason for ssh is %q, which does not name it", s.name, s.value, reason)
		}
	}
	for _, name := range append(transport.Rules(), keywords(defaults)...) {
		if !tried[strings.ToLower(name)] {
			t.Errorf("%s has no sample", name)
		}
	}
	permitted, _ := sshSettings(t, "-oPermitLocalCommand=yes", "-oLocalCommand=true")
	if reason := transport.OnlyOpenSSH(permitted, defaults); reason != "LocalCommand is true" {
		t.Errorf("a LocalCommand that is permitted: the reason for ssh is %q", reason)
	}
}

// Keywords of a later ssh are no reason for it as long as they have its default, and are
// one otherwise.
func TestSettingsOfLaterVersions(t *testing.T) {
	defaults, _ := sshSettings(t)
	defaults += "channeltimeout none\nnewfangled yes\n"
	if reason := transport.OnlyOpenSSH(defaults, defaults); reason != "" {
		t.Errorf("defaults: %s", reason)
	}
	for changed, want := range map[string]string{
		strings.Replace(defaults, "newfangled yes", "newfangled no", 1): "newfangled is no",
		strings.Replace(defaults, "newfangled yes\n", "", 1):            "newfangled is not set",
		defaults + "refuseconnection go away\n":                         "refuseconnection is go away",
	} {
		if reason := transport.OnlyOpenSSH(changed, defaults); reason != want {
			t.Errorf("got %q, want %q", reason, want)
		}
	}
}

// The configuration that a distribution installs selects the built-in client.
func TestDistributions(t *testing.T) {
	needProgram(t, "ssh")
	t.Setenv("KRB5CCNAME", "FILE:/nonexistent")
	files, err := filepath.Glob("testdata/ssh_config/*")
	if err != nil || len(files) != 3 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			path, err := filepath.Abs(file)
			if err != nil {
				t.Fatal(err)
			}
			h, s := newHost(t), newSetup(t)
			s.add("there", h)
			s.blocks = append(s.blocks, "Host *\nInclude "+path)
			s.add("unused", h)
			if out := run(t, "ssh", "-F", s.options.SSHOptions[1], "-G", "there"); !strings.Contains(strings.ToLower(out), strings.ToLower(marks[filepath.Base(file)])) {
				t.Fatalf("ssh does not read %s", file)
			}
			conn := s.mustDial("there")
			if conn.Describe() != transport.ProgramBuiltin {
				t.Error(conn.Describe())
			}
			works(t, conn)
		})
	}
}

// marks are lines that a distribution's configuration has ssh -G print.
var marks = map[string]string{
	"debian": "SendEnv LC_*",
	"fedora": "RequiredRSASize 2048",
	"nixos":  "AddressFamily inet",
}

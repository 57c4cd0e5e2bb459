package transport

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A rule says what the built-in client makes of a setting that is not the default of
// the user's ssh. Settings without a rule are left to the user's ssh.
type rule struct {
	name     string                // as ssh_config(5) spells it
	values   string                // the values that are honoured, in lower case; empty: see accepts
	accepts  func(s settings) bool // whether what s says is honoured; nil: see values, else always
	harmless string                // why ignoring it gives no peer more than ssh would; empty: it is honoured
}

const (
	off     = "no false none"
	onOrOff = "yes true no false"
)

// Reasons that several rules share.
const (
	onlyTerminal   = "sessions have no terminal"
	onlyForwarding = "nothing is forwarded"
	onlyGSSAPI     = "GSSAPI selects ssh"
	onlyHostbased  = "HostbasedAuthentication selects ssh"
	onlyMessages   = "it is about ssh's own messages"
	ownCommand     = "each session names its own command"
	doneBySSH      = "ssh -G has applied it"
)

// rules is the one table of settings. A test compares it with the keywords of ssh -G.
var rules = []rule{
	{name: "AddressFamily", values: "any inet inet6"},
	{name: "BatchMode", values: onOrOff},
	{name: "BindAddress"},
	{name: "CASignatureAlgorithms"},
	{name: "CertificateFile"},
	{name: "Ciphers"},
	{name: "ConnectTimeout"},
	{name: "ControlPath"}, // a master that runs selects ssh
	{name: "GlobalKnownHostsFile"},
	{name: "GSSAPIAuthentication"}, // with a ticket it selects ssh
	{name: "GSSAPIKeyExchange"},    // likewise
	{name: "HashKnownHosts", values: onOrOff},
	{name: "Host"},
	{name: "HostKeyAlgorithms"},
	{name: "HostKeyAlias"},
	{name: "HostName"},
	{name: "IdentitiesOnly", values: onOrOff},
	{name: "IdentityAgent"},
	{name: "IdentityFile"},
	{name: "IPQoS", accepts: unmarked},
	{name: "KbdInteractiveAuthentication", values: onOrOff},
	{name: "KexAlgorithms"},
	{name: "LocalCommand", accepts: func(s settings) bool { return s.off("localcommand") || s.off("permitlocalcommand") }},
	{name: "MACs"},
	{name: "NumberOfPasswordPrompts"},
	{name: "PasswordAuthentication", values: onOrOff},
	{name: "Port"},
	{name: "PreferredAuthentications"},
	{name: "ProxyCommand"},
	{name: "ProxyJump"},
	{name: "PubkeyAcceptedAlgorithms"},
	{name: "PubkeyAuthentication", values: onOrOff + " unbound"},
	{name: "RekeyLimit", accepts: func(s settings) bool { _, ok := rekeyLimit(s.first("rekeylimit")); return ok }},
	{name: "RequiredRSASize"},
	{name: "SendEnv"},
	{name: "ServerAliveCountMax"},
	{name: "ServerAliveInterval"},
	{name: "SetEnv"},
	{name: "StrictHostKeyChecking", values: onOrOff + " off ask accept-new"},
	{name: "User"},
	{name: "UserKnownHostsFile"},

	// Only without: what they ask for is done by ssh alone.
	{name: "BindInterface", values: off},
	{name: "CheckHostIP", values: off},
	{name: "Compression", values: off},
	{name: "HostbasedAuthentication", values: off},
	{name: "KnownHostsCommand", values: off},
	{name: "NoHostAuthenticationForLocalhost", values: off},
	{name: "PKCS11Provider", values: off},
	{name: "ProxyUseFdpass", values: off},
	{name: "RevokedHostKeys", values: off},
	{name: "VerifyHostKeyDNS", values: off},

	{name: "AddKeysToAgent", harmless: "no key is added to the agent"},
	{name: "CanonicalDomains", harmless: doneBySSH},
	{name: "CanonicalizeFallbackLocal", harmless: doneBySSH},
	{name: "CanonicalizeHostname", harmless: doneBySSH},
	{name: "CanonicalizeMaxDots", harmless: doneBySSH},
	{name: "CanonicalizePermittedCNAMEs", harmless: doneBySSH},
	{name: "ClearAllForwardings", harmless: onlyForwarding},
	{name: "ConnectionAttempts", harmless: "--retries is about the whole copy"},
	{name: "ControlMaster", harmless: "no connection of ours is shared with other programs"},
	{name: "ControlPersist", harmless: "no connection of ours is shared with other programs"},
	{name: "DynamicForward", harmless: onlyForwarding},
	{name: "EnableEscapeCommandline", harmless: onlyTerminal},
	{name: "EnableSSHKeysign", harmless: onlyHostbased},
	{name: "EscapeChar", harmless: onlyTerminal},
	{name: "ExitOnForwardFailure", harmless: onlyForwarding},
	{name: "FingerprintHash", harmless: onlyMessages},
	{name: "ForkAfterAuthentication", harmless: ownCommand},
	{name: "ForwardAgent", harmless: onlyForwarding},
	{name: "ForwardX11", harmless: onlyForwarding},
	{name: "ForwardX11Timeout", harmless: onlyForwarding},
	{name: "ForwardX11Trusted", harmless: onlyForwarding},
	{name: "GatewayPorts", harmless: onlyForwarding},
	{name: "GSSAPIClientIdentity", harmless: onlyGSSAPI},
	{name: "GSSAPIDelegateCredentials", harmless: onlyGSSAPI},
	{name: "GSSAPIKexAlgorithms", harmless: onlyGSSAPI},
	{name: "GSSAPIRenewalForcesRekey", harmless: onlyGSSAPI},
	{name: "GSSAPIServerIdentity", harmless: onlyGSSAPI},
	{name: "GSSAPITrustDNS", harmless: onlyGSSAPI},
	{name: "HostbasedAcceptedAlgorithms", harmless: onlyHostbased},
	{name: "IgnoreUnknown", harmless: "what it hides from ssh has no rule here"},
	{name: "LocalForward", harmless: onlyForwarding},
	{name: "LogLevel", harmless: onlyMessages},
	{name: "LogVerbose", harmless: onlyMessages},
	{name: "ObscureKeystrokeTiming", harmless: onlyTerminal},
	{name: "PermitLocalCommand", harmless: "LocalCommand has its own rule"},
	{name: "PermitRemoteOpen", harmless: onlyForwarding},
	{name: "RemoteCommand", harmless: ownCommand},
	{name: "RemoteForward", harmless: onlyForwarding},
	{name: "RequestTTY", harmless: onlyTerminal},
	{name: "SecurityKeyProvider", harmless: "a security key that no agent holds selects ssh"},
	{name: "SessionType", harmless: ownCommand},
	{name: "StdinNull", harmless: ownCommand},
	{name: "StreamLocalBindMask", harmless: onlyForwarding},
	{name: "StreamLocalBindUnlink", harmless: onlyForwarding},
	{name: "SyslogFacility", harmless: onlyMessages},
	{name: "Tag", harmless: doneBySSH},
	{name: "TCPKeepAlive", harmless: "a silent host is given up by ServerAliveInterval"},
	{name: "Tunnel", harmless: onlyForwarding},
	{name: "TunnelDevice", harmless: onlyForwarding},
	{name: "UpdateHostKeys", harmless: "ssh learns further host keys when it connects"},
	{name: "VisualHostKey", harmless: onlyMessages},
	{name: "WarnWeakCrypto", harmless: onlyMessages},
	{name: "XAuthLocation", harmless: onlyForwarding},
}

// unsupported names the first setting, by the alphabet, that the built-in client must
// leave to the user's ssh. defaults is nil if they are not known; then every setting
// in s counts.
func unsupported(s, defaults settings) string {
	byKey := make(map[string]rule, len(rules))
	for _, r := range rules {
		byKey[strings.ToLower(r.name)] = r
	}
	keys := maps.Clone(s)
	maps.Copy(keys, defaults)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if defaults != nil && slices.Equal(s[key], defaults[key]) {
			continue
		}
		r, known := byKey[key]
		if !known {
			return s.tell(key)
		}
		if !r.honours(s, key) {
			return s.tell(r.name)
		}
	}
	return ""
}

func (r rule) honours(s settings, key string) bool {
	switch {
	case r.accepts != nil:
		return r.accepts(s)
	case r.values != "" && len(s[key]) > 0:
		return slices.Contains(strings.Fields(r.values), strings.ToLower(s.first(key)))
	}
	return true
}

// tell says what a setting is, for people.
func (s settings) tell(name string) string {
	values := s[strings.ToLower(name)]
	if len(values) == 0 {
		return name + " is not set"
	}
	return fmt.Sprintf("%s is %s", name, values[0])
}

// unmarked reports whether IPQoS leaves the packets of sessions without a terminal as
// the built-in client sends them.
func unmarked(s settings) bool {
	words := strings.Fields(strings.ToLower(s.first("ipqos")))
	return len(words) > 0 && slices.Contains([]string{"none", "cs0", "0x00", "0"}, words[len(words)-1])
}

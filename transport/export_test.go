package transport

// What the fuzz targets look at.
var (
	ParseSettings    = parseSettings
	OpenSSHPublicKey = openSSHPublicKey
	WildcardMatches  = wildcardMatches
)

// KnownHostMatches reports how many lines of a known_hosts file are about a host.
func KnownHostMatches(data []byte, host string) int {
	return len(parseKnownHosts("known_hosts", data).named(host))
}

// Rules returns the names of all settings that the built-in client has a rule for.
func Rules() []string {
	var names []string
	for _, r := range rules {
		names = append(names, r.name)
	}
	return names
}

// OnlyOpenSSH says why the settings, as ssh -G prints them, need the user's ssh. It
// returns an empty string if the built-in client will do.
func OnlyOpenSSH(of, defaults string) string {
	_, reason, err := newHostConfig("there", parseSettings(of), parseSettings(defaults))
	if err != nil {
		return err.Error()
	}
	return reason
}

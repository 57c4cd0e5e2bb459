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

package remote

import "fmt"

// Protocols names the newest version of each protocol that this package speaks.
func Protocols() string {
	return fmt.Sprintf("serve %s, worker %s, peer %d", dotted(serveVersion), dotted(workerVersion), peerVersion)
}

// dotted returns the form in which Nix writes the versions of its protocols.
func dotted(version uint64) string { return fmt.Sprintf("%d.%d", version>>8, version&0xff) }

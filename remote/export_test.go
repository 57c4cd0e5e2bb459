package remote

import "io"

// FollowPeer reads what one side of a session says in the peer protocol, from its first
// frame on, and returns why that ended.
func FollowPeer(r io.Reader, said func(kind byte, payload []byte)) error {
	b := newBundle(maxWindow)
	go func() { b.fail(b.run(r, io.Discard, func() {})) }()
	in := newMessageReader(b)
	defer in.close()
	for {
		m, err := in.next()
		if err != nil {
			return err
		}
		said(m.kind, m.payload.b)
	}
}

// PeerData is the kind of the messages that carry NARs.
const PeerData = msgData

// WaitGone waits until p has ended.
func (p *Peer) WaitGone() { <-p.gone }

// StartCommands returns the commands of first sessions, by what they start.
func StartCommands(f FarEnd) map[string]string {
	return map[string]string{"nix-store --serve --write": f.startCommand(), "nix-daemon --stdio": f.workerCommand()}
}

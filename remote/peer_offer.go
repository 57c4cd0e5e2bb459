package remote

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// offerMarker begins the line before the greeting in which our server offers the peer
// protocol: version, and words of which unknown ones mean nothing.
const offerMarker = "@copy-closure-peer "

// An offer is what a server tells of its peer protocol.
type offer struct {
	version  int
	inOrder  bool   // paths must come behind their references
	refuses  bool   // paths without a trusted key's signature
	atomic   bool   // paths can become valid together
	foresees bool   // what caches have can be asked
	token    []byte // for further lanes; nil: none can be had
	room     *Room  // nil: not told
}

// flags are the words that are there or not.
func (o *offer) flags() map[string]*bool {
	return map[string]*bool{"in-order": &o.inOrder, "untrusted": &o.refuses, "atomic": &o.atomic, "foresees": &o.foresees}
}

func (o offer) line() string {
	words := []string{fmt.Sprint(o.version)}
	flags := o.flags()
	for _, word := range slices.Sorted(maps.Keys(flags)) {
		if *flags[word] {
			words = append(words, word)
		}
	}
	if o.token != nil {
		words = append(words, "join="+hex.EncodeToString(o.token))
	}
	if o.room != nil {
		words = append(words, fmt.Sprintf("room=%d,%d,%s", o.room.Bytes, o.room.Files, o.room.FileSystem))
	}
	return offerMarker + strings.Join(words, " ") + "\n"
}

// parseOffer reads what follows the marker. Whoever makes no sense offers nothing.
func parseOffer(text string) offer {
	var o offer
	words := strings.Fields(text)
	if len(words) == 0 {
		return o
	}
	if _, err := fmt.Sscanf(words[0], "%d", &o.version); err != nil || o.version < 1 {
		return offer{}
	}
	flags := o.flags()
	for _, word := range words[1:] {
		name, value, _ := strings.Cut(word, "=")
		switch {
		case flags[word] != nil:
			*flags[word] = true
		case name == "join":
			if b, err := hex.DecodeString(value); err == nil && len(b) == tokenSize {
				o.token = b
			}
		case name == "room":
			o.room = parseOfferedRoom(value)
		}
	}
	return o
}

// parseOfferedRoom returns nil for what makes no sense.
func parseOfferedRoom(text string) *Room {
	var r Room
	n, err := fmt.Sscanf(strings.ReplaceAll(text, ",", " "), "%d %d %s", &r.Bytes, &r.Files, &r.FileSystem)
	if n < 2 || err != nil && n != 2 || r.Bytes < 0 || r.Files < 0 {
		return nil
	}
	return &r
}

package localstore

// ScanFor returns which of candidates a scanner finds in writes.
func ScanFor(candidates []string, writes ...[]byte) map[string]bool {
	s := &scanner{candidates: make(map[hashPart]struct{})}
	for _, c := range candidates {
		s.candidates[hashPart([]byte(c))] = struct{}{}
	}
	for _, w := range writes {
		s.Write(w)
	}
	found := make(map[string]bool)
	for part := range s.found {
		found[string(part[:])] = true
	}
	return found
}

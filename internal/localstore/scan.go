package localstore

// A scanner finds the hash parts of store paths in a stream, wherever they stand,
// also across the borders of writes.
type scanner struct {
	candidates map[hashPart]struct{}
	found      map[hashPart]struct{}
	tail       []byte // the last bytes of the stream, fewer than a hash part has
}

func (s *scanner) Write(p []byte) (int, error) {
	const size = len(hashPart{})
	// What begins in the tail ends among the first bytes of p.
	s.scan(append(s.tail, p[:min(len(p), size-1)]...))
	s.scan(p)
	if len(p) >= size-1 {
		s.tail = append(s.tail[:0], p[len(p)-size+1:]...)
		return len(p), nil
	}
	s.tail = append(s.tail, p...)
	s.tail = s.tail[max(0, len(s.tail)-size+1):]
	return len(p), nil
}

func (s *scanner) scan(b []byte) {
	const size = len(hashPart{})
	for i := 0; i+size <= len(b); {
		// From behind: a byte that cannot be in a hash part rules out all
		// places that include it.
		j := size - 1
		for j >= 0 && isNix32(b[i+j]) {
			j--
		}
		if j >= 0 {
			i += j + 1
			continue
		}
		part := hashPart(b[i:])
		if _, ok := s.candidates[part]; ok {
			if s.found == nil {
				s.found = make(map[hashPart]struct{})
			}
			s.found[part] = struct{}{}
		}
		i++
	}
}

// isNix32 reports whether c is a digit of Nix's base 32.
func isNix32(c byte) bool {
	switch {
	case '0' <= c && c <= '9':
		return true
	case 'a' <= c && c <= 'z':
		return c != 'e' && c != 'o' && c != 't' && c != 'u'
	}
	return false
}

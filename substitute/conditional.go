package substitute

import (
	"net/http"
	"strconv"
	"strings"
)

// A byteRange is a part of a body, from first up to but not including end.
type byteRange struct{ first, end int64 }

// notModified reports whether the client has what it asks for, by its tag.
func notModified(r *http.Request, etag string) bool {
	for _, field := range r.Header.Values("If-None-Match") {
		for tag := range strings.SplitSeq(field, ",") {
			tag = strings.TrimSpace(tag)
			if tag == "*" || strings.TrimPrefix(tag, "W/") == etag {
				return true
			}
		}
	}
	return false
}

// wantedRange returns the part of a body of size bytes that the client wants, or
// nil for all of it: also where it asks for several parts, or for a part of
// something else. ok is false for a part that does not exist.
func wantedRange(r *http.Request, etag string, size int64) (part *byteRange, ok bool) {
	spec, isBytes := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	condition := r.Header.Get("If-Range")
	if !isBytes || condition != "" && condition != etag {
		return nil, true
	}
	first, last, isPair := strings.Cut(strings.TrimSpace(spec), "-")
	if !isPair || strings.Contains(last, ",") {
		return nil, true
	}
	from, fromErr := parseOffset(first)
	to, toErr := parseOffset(last)
	switch {
	case first == "" && toErr == nil: // the last so many bytes
		return &byteRange{max(0, size-to), size}, to > 0
	case fromErr != nil || last != "" && (toErr != nil || to < from):
		return nil, true // malformed fields are passed over
	case last == "" || to >= size:
		to = size - 1
	}
	return &byteRange{from, to + 1}, from < size
}

// parseOffset takes digits alone.
func parseOffset(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err
}

// accepts reports whether the client takes a content coding.
func accepts(r *http.Request, coding string) bool {
	for _, field := range r.Header.Values("Accept-Encoding") {
		for word := range strings.SplitSeq(field, ",") {
			name, parameter, _ := strings.Cut(word, ";")
			if !strings.EqualFold(strings.TrimSpace(name), coding) {
				continue
			}
			weight, given := strings.CutPrefix(strings.TrimSpace(parameter), "q=")
			q, err := strconv.ParseFloat(weight, 64)
			return !given || err == nil && q > 0
		}
	}
	return false
}

package substitute

import (
	"crypto/sha256"
	"io"
	"net/http"
	"strconv"
	"sync"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A text is a short body with its tag.
type text struct{ body, etag string }

func newText(body string) text {
	sum := sha256.Sum256([]byte(body))
	return text{body, `"` + nix.EncodeNix32(sum[:20]) + `"`}
}

// answer sends the text.
func (t text) answer(res *response, r *http.Request, contentType string) error {
	h := res.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", keepInfo)
	h.Set("ETag", t.etag)
	if notModified(r, t.etag) {
		res.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Content-Length", strconv.Itoa(len(t.body)))
	res.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	_, err := io.WriteString(res, t.body)
	return err
}

// maxTexts bounds the memory of a textCache.
const maxTexts = 8 << 20 // bytes

// A textCache keeps texts that are right for one version of a store. It is emptied
// when it is full or the version is another.
type textCache struct {
	mu      sync.Mutex
	version any
	texts   map[string]text
	size    int
}

func (c *textCache) get(key string, version any) (text, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if version != c.version {
		return text{}, false
	}
	t, ok := c.texts[key]
	return t, ok
}

// put keeps a text that was made after the version was asked for.
func (c *textCache) put(key string, t text, version any) {
	const overhead = 200 // bytes
	c.mu.Lock()
	defer c.mu.Unlock()
	size := len(t.body) + overhead
	if version != c.version || c.size+size > maxTexts {
		c.version, c.texts, c.size = version, make(map[string]text), 0
	}
	c.texts[key] = t
	c.size += size
}

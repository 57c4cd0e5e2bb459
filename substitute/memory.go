package substitute

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/copy-closure/copy-closure/internal/nix"
)

const (
	// memoryTime is how long an answer is believed. A cache that drops files more
	// often loses nothing but time.
	memoryTime = 24 * time.Hour
	// maxMemory bounds the file for one cache in bytes; a full one is begun anew.
	maxMemory = 16 << 20
)

// A Memory keeps narinfos for other runs, in one file for each cache: records of a
// line "HASHPART SECONDS LENGTH" and LENGTH bytes of narinfo, appended under a lock of
// the file; the last one for a path counts. What is read is checked as if it had just
// come from the cache. That a cache has not got a path is not kept: it may have it a
// moment later. Nothing fails if the files cannot be used. A nil Memory is empty.
type Memory struct {
	Dir string // of the files
	// Refresh ignores what is there, and replaces it.
	Refresh bool

	mu    sync.Mutex
	files map[*Cache]map[string][]byte // by hash part
}

// Files that are identified are others where anything but the URL is, such as the user.
type identified interface {
	// Identity is not for people, but holds no password either.
	Identity() string
}

// file names the file for a cache.
func (m *Memory) file(c *Cache) string {
	identity := c.Files.String()
	if files, ok := c.Files.(identified); ok {
		identity = files.Identity()
	}
	sum := sha256.Sum256([]byte(identity))
	return filepath.Join(m.Dir, nix.EncodeNix32(sum[:20]))
}

// recall returns what c said of p lately, or nil.
func (m *Memory) recall(c *Cache, p nix.StorePath) *NARInfo {
	if m == nil || m.Refresh || !worthRemembering(c) {
		return nil
	}
	m.mu.Lock()
	records, read := m.files[c]
	if !read {
		records = m.load(m.file(c))
		m.remember(c, records)
	}
	text := records[p.HashPart()]
	m.mu.Unlock()
	if text == nil {
		return nil
	}
	n, err := c.believe(p, text)
	if err != nil {
		return nil
	}
	return n
}

// worthRemembering is false for caches that are asked as fast as we remember.
func worthRemembering(c *Cache) bool {
	_, here := c.Files.(Dir)
	return !here
}

func (m *Memory) remember(c *Cache, records map[string][]byte) {
	if m.files == nil {
		m.files = make(map[*Cache]map[string][]byte)
	}
	m.files[c] = records
}

// load returns the records of a file that are young enough. A damaged file is emptied.
func (m *Memory) load(name string) map[string][]byte {
	records := make(map[string][]byte)
	f, err := lockFile(name, os.O_RDONLY, syscall.LOCK_SH)
	if err != nil {
		return records
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxMemory))
	if err != nil {
		return records
	}
	now := time.Now()
	for len(text) > 0 {
		line, rest, _ := bytes.Cut(text, []byte("\n"))
		var key string
		var seconds, length int64
		_, err := fmt.Sscanf(string(line), "%32s %d %d", &key, &seconds, &length)
		if err != nil || length < 0 || length > int64(len(rest)) {
			os.Truncate(name, 0) // nobody writes while we have the lock
			break
		}
		if age := now.Sub(time.Unix(seconds, 0)); age >= 0 && age < memoryTime {
			records[key] = rest[:length]
		}
		text = rest[length:]
	}
	return records
}

// save keeps hits that are no memories.
func (m *Memory) save(hits []Hit) {
	if m == nil {
		return
	}
	texts := make(map[*Cache]*strings.Builder)
	now := time.Now().Unix()
	for _, h := range hits {
		if h.remembered || !worthRemembering(h.Cache) {
			continue
		}
		if texts[h.Cache] == nil {
			texts[h.Cache] = new(strings.Builder)
		}
		text := h.Text()
		fmt.Fprintf(texts[h.Cache], "%s %d %d\n%s", h.Path.HashPart(), now, len(text), text)
	}
	for c, text := range texts {
		m.append(m.file(c), text.String())
	}
}

// append writes records at the end of a file.
func (m *Memory) append(name, records string) {
	if len(records) > maxMemory || os.MkdirAll(m.Dir, 0o700) != nil {
		return
	}
	f, err := lockFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, syscall.LOCK_EX)
	if err != nil {
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && info.Size()+int64(len(records)) > maxMemory {
		err = f.Truncate(0)
	}
	if err == nil {
		io.WriteString(f, records)
	}
}

// lockFile opens a file and waits for a lock of it, which ends when it is closed.
func lockFile(name string, flags, kind int) (*os.File, error) {
	f, err := os.OpenFile(name, flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), kind); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// forget drops what is known of a cache, which has turned out to be wrong.
func (m *Memory) forget(c *Cache) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remember(c, nil)
	if f, err := lockFile(m.file(c), os.O_WRONLY, syscall.LOCK_EX); err == nil {
		f.Truncate(0)
		f.Close()
	}
}

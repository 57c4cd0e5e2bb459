package remote

import (
	"fmt"
	"slices"
	"sync"

	"github.com/copy-closure/copy-closure/internal/wire"
)

const maxFeatures = 256 // that a far end may name

// A workerDialect begins sessions of the worker protocol.
type workerDialect struct {
	once       sync.Once     // of the first session's introduction
	introduced chan struct{} // closed when what follows is known
	nixVersion string        // empty where the daemon does not tell
	features   []string      // that the daemon named
	trust      Trust
}

// A Trust says whether a daemon takes unsigned paths from this user.
type Trust uint64

// The numbers are those of the protocol.
const (
	TrustUnknown Trust = iota
	Trusted
	NotTrusted
)

func (*workerDialect) name() string { return "worker protocol" }

func (*workerDialect) hello(w *wire.Writer) {
	w.Uint64(workerMagicClient)
	w.Uint64(workerVersion)
}

// greet reads the daemon's version, on which it depends what else a client says at
// first, and says that.
func (d *workerDialect) greet(c *conn, r *wire.Reader) error {
	c.sayHello()
	if err := c.readPrelude(r, workerMagicServer); err != nil {
		return err
	}
	version := r.Uint64()
	if err := r.Err(); err != nil {
		return err
	}
	if version>>8 != workerVersion>>8 || version < workerMinVersion {
		return &wire.FormatError{Msg: fmt.Sprintf("it speaks version %d.%d of the worker protocol; 1.21 (Nix 2.1) or newer is needed",
			version>>8, version&0xff)}
	}
	c.version = min(version, workerVersion)
	c.warnOfNoise()
	if err := c.introduceWorker(); err != nil {
		return err
	}
	close(c.greeted)
	return d.readIntroduction(c, r)
}

// offers reports whether the daemon is known to have a feature. It does not wait for the
// daemon's introduction, which comes behind the first requests: these do without.
func (d *workerDialect) offers(feature string) bool {
	select {
	case <-d.introduced:
		return slices.Contains(d.features, feature)
	default:
		return false
	}
}

// sayHello does not wait for the first request, which must wait for the answer. An
// error of writing shows in what is read.
func (c *conn) sayHello() {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.w.Flush()
}

// introduceWorker says what a daemon expects behind the versions.
func (c *conn) introduceWorker() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.version >= workerFeatures {
		c.w.Strings(ourFeatures)
	}
	c.w.Uint64(0) // no processor is preferred
	c.w.Uint64(0) // no space is reserved
	return c.w.Flush()
}

// readIntroduction reads what the daemon says of itself.
func (d *workerDialect) readIntroduction(c *conn, r *wire.Reader) error {
	var features []string
	if c.version >= workerFeatures {
		features = r.Strings(maxFeatures, wire.MaxField)
	}
	nixVersion, trust := "", TrustUnknown
	if c.version >= workerNixVersion {
		nixVersion = r.String(wire.MaxField)
	}
	if c.version >= workerTrust {
		trust = Trust(r.Uint64())
	}
	if r.Err() == nil && trust > NotTrusted {
		return &wire.FormatError{Msg: fmt.Sprintf("it answers with %d where it should say whether it trusts us", trust)}
	}
	if err := c.readMessages(r, nil); err != nil {
		return err
	}
	d.once.Do(func() {
		d.nixVersion, d.features, d.trust = nixVersion, features, trust
		close(d.introduced)
	})
	return nil
}

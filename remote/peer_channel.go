package remote

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// A messageWriter writes messages into a bundle. It may be used concurrently.
type messageWriter struct {
	bundle *bundle
	mu     sync.Mutex
	head   []byte
	packer *packer // nil where nothing is ever packed
	limit  *rate.Limiter
}

// send writes a message whose payload are fields, followed by data.
func (w *messageWriter) send(kind byte, fields, data []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.head = append(w.head[:0], kind)
	w.head = binary.AppendUvarint(w.head, uint64(len(fields)+len(data)))
	w.head = append(w.head, fields...)
	size := len(w.head) + len(data)
	if w.packer == nil {
		return w.write(size, w.head, data)
	}
	if w.packer.level == 0 || size > maxPacked-packSize || isDense(data) {
		return errors.Join(w.pack(), w.write(size, w.head, data))
	}
	w.packer.raw = append(append(w.packer.raw, w.head...), data...)
	if len(w.packer.raw) < packSize {
		return nil
	}
	return w.pack()
}

// write puts into the bundle what taken bytes of messages have become, and tells the
// packer how the link takes it.
func (w *messageWriter) write(taken int, parts ...[]byte) error {
	start := time.Now()
	size := 0
	for _, part := range parts {
		if err := w.put(part); err != nil {
			return err
		}
		size += len(part)
	}
	if w.packer != nil {
		w.packer.waited += time.Since(start)
		w.packer.observe(taken, size)
	}
	return nil
}

// put writes to the bundle, no faster than the limit.
func (w *messageWriter) put(b []byte) error {
	if w.limit == nil {
		_, err := w.bundle.Write(b)
		return err
	}
	for chunk := range slices.Chunk(b, w.limit.Burst()) {
		if err := w.limit.WaitN(context.Background(), len(chunk)); err != nil {
			return err
		}
		if _, err := w.bundle.Write(chunk); err != nil {
			return err
		}
		w.bundle.Flush()
	}
	return nil
}

// limited returns a reader that the same limit holds for: the other side may be no more
// than the window ahead of it.
func (w *messageWriter) limited(r io.Reader) io.Reader {
	if w.limit == nil {
		return r
	}
	return limitedReader{r, w.limit}
}

type limitedReader struct {
	r     io.Reader
	limit *rate.Limiter
}

func (l limitedReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p[:min(len(p), l.limit.Burst())])
	if waitErr := l.limit.WaitN(context.Background(), n); waitErr != nil {
		return n, waitErr
	}
	return n, err
}

// linkRate is how many bytes of messages a second the link takes, 0 if that is not known.
func (w *messageWriter) linkRate() float64 {
	if w.packer == nil {
		return 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.packer.link
}

// pack sends what was gathered.
func (w *messageWriter) pack() error {
	if w.packer == nil || len(w.packer.raw) == 0 {
		return nil
	}
	taken := len(w.packer.raw)
	packed, err := w.packer.pack()
	if err != nil {
		return err
	}
	return w.write(taken, binary.AppendUvarint([]byte{msgPacked}, uint64(len(packed))), packed)
}

// sendNow is send for what the other side waits for.
func (w *messageWriter) sendNow(kind byte, fields []byte) error {
	if err := w.send(kind, fields, nil); err != nil {
		return err
	}
	return w.flush()
}

// flush hands on what was sent.
func (w *messageWriter) flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.pack()
	w.bundle.Flush()
	return err
}

// gather is how many bytes of a NAR are put into one message at least, but for the
// last.
const gather = 64 << 10

// A channelWriter sends one NAR in a channel. It takes at most left bytes.
type channelWriter struct {
	out     *messageWriter
	channel []byte // its number, encoded
	left    int64
	buf     []byte
	err     error // of sending
}

func newChannelWriter(out *messageWriter, channel uint64) *channelWriter {
	return &channelWriter{out: out, channel: binary.AppendUvarint(nil, channel)}
}

// begin makes the writer ready for a NAR of size bytes.
func (w *channelWriter) begin(size int64) { w.left, w.buf = size, w.buf[:0] }

func (w *channelWriter) Write(p []byte) (int, error) {
	if int64(len(p)) > w.left {
		return 0, fmt.Errorf("NAR is longer than its path info says")
	}
	w.left -= int64(len(p))
	n := len(p)
	if len(w.buf)+len(p) < gather {
		w.buf = append(w.buf, p...)
		return n, nil
	}
	w.flush()
	for chunk := range slices.Chunk(p, maxData) {
		w.data(chunk)
	}
	return n, w.err
}

func (w *channelWriter) data(p []byte) {
	if w.err == nil {
		w.err = w.out.send(msgData, w.channel, p)
	}
}

func (w *channelWriter) flush() {
	if len(w.buf) > 0 {
		w.data(w.buf)
		w.buf = w.buf[:0]
	}
}

// A tailWriter leaves out the first bytes of what is written.
type tailWriter struct {
	w    io.Writer
	skip int64
}

func (t *tailWriter) Write(p []byte) (int, error) {
	skipped := int(min(t.skip, int64(len(p))))
	t.skip -= int64(skipped)
	if skipped == len(p) {
		return skipped, nil
	}
	n, err := t.w.Write(p[skipped:])
	return skipped + n, err
}

// end completes the NAR.
func (w *channelWriter) end() error {
	w.flush()
	if w.err == nil {
		w.err = w.out.send(msgEnd, w.channel, nil)
	}
	return w.err
}

// abort says that the NAR will not be complete, and why.
func (w *channelWriter) abort(reason string) {
	if w.err == nil {
		w.err = w.out.sendNow(msgAbort, appendText(slices.Clone(w.channel), clipText(reason)))
	}
}

func clipText(s string) string { return s[:min(len(s), maxPeerText)] }

// Limits on what the server or the client has received and not yet used, in bytes of
// memory.
const (
	inboxBytes   = 4 << 20  // one channel; more waits
	inboxesBytes = 24 << 20 // all channels of a session; more waits
	infosBytes   = 64 << 20 // path infos that the workers of a session have at work; more is an error
)

// An item is what came in a channel.
type item struct {
	kind   byte
	buf    []byte        // of msgData; data lies in it
	data   []byte        // of msgData
	number uint64        // of msgAdd and msgPatch
	info   *nix.PathInfo // of all others but msgEnd, msgAbort and msgFlush
	offset int64         // of msgAdd and msgWant
	base   nix.StorePath // of msgPatch, msgSign and msgUpdate
	always bool          // of msgUpdate and msgSigned: a delta, however fast the link is
	text   string        // of msgAbort
	passed chan struct{} // of msgFlush: closed when it is taken
}

// itemBytes is what an item takes beside what it points to.
const itemBytes = 256

// weight estimates the memory that an item takes.
func (i item) weight() int {
	w := itemBytes + max(cap(i.buf), len(i.data)) + len(i.text)
	if i.info != nil {
		w += i.info.MemorySize()
	}
	return w
}

// inboxes bound what the inboxes of a session hold together.
type inboxes struct {
	mu    sync.Mutex
	room  *sync.Cond // whoever puts waits for it
	held  int        // bytes in all inboxes
	infos int        // bytes of the path infos that were taken and are at work
}

func newInboxes() *inboxes {
	s := new(inboxes)
	s.room = sync.NewCond(&s.mu)
	return s
}

// open returns a further inbox.
func (s *inboxes) open() *inbox { return &inbox{session: s, changed: sync.NewCond(&s.mu)} }

// An inbox holds what came in a channel until it is taken. The lock of its session
// guards it.
type inbox struct {
	session *inboxes
	changed *sync.Cond // the taker waits for it
	items   []item
	weight  int
	working int   // bytes of the path info that is at work
	err     error // why there will be no more

	now   item            // that is being read
	over  bool            // the NAR has ended
	later []chan struct{} // of flushes that came in the middle of the NAR: closed behind it
}

// put waits while the inbox or its session is full, unless the inbox is closed. Something
// can always be put when all inboxes are empty.
func (in *inbox) put(i item) error {
	s, w := in.session, i.weight()
	s.mu.Lock()
	defer s.mu.Unlock()
	for in.err == nil && s.held > 0 && (in.weight >= inboxBytes || s.held+w > inboxesBytes) {
		s.room.Wait()
	}
	if i.info != nil && s.infos+w > infosBytes {
		return &wire.FormatError{Msg: fmt.Sprintf("it sends path infos of more than %d MiB at once", infosBytes>>20)}
	}
	in.items = append(in.items, i)
	in.weight += w
	s.held += w
	in.changed.Signal()
	return nil
}

// close lets the taker have what is there, and then err.
func (in *inbox) close(err error) {
	in.session.mu.Lock()
	defer in.session.mu.Unlock()
	if in.err == nil {
		in.err = err
	}
	in.changed.Broadcast()
	in.session.room.Broadcast()
}

// next waits for the next item when all is done with the one before.
func (in *inbox) next() (item, error) {
	in.session.mu.Lock()
	in.session.infos -= in.working
	in.working = 0
	in.session.mu.Unlock()
	return in.take()
}

// take waits for the next item.
func (in *inbox) take() (item, error) {
	s := in.session
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(in.items) == 0 {
		if in.err != nil {
			return item{}, in.err
		}
		in.changed.Wait()
	}
	i := in.items[0]
	in.items[0] = item{}
	in.items = in.items[1:]
	w := i.weight()
	in.weight -= w
	s.held -= w
	if i.info != nil {
		s.infos += w
		in.working += w
	}
	s.room.Broadcast()
	return i, nil
}

var errUnended = &wire.FormatError{Msg: "it sends something else before the end of a NAR"}

// begin makes the following reads those of the next NAR.
func (in *inbox) begin() { in.now, in.over = item{}, false }

// Read reads the NAR that is under way. It returns io.EOF at its end.
func (in *inbox) Read(p []byte) (int, error) {
	for len(in.now.data) == 0 {
		if in.over {
			return 0, io.EOF
		}
		i, err := in.take()
		if err != nil {
			return 0, err
		}
		switch i.kind {
		case msgData:
			in.now = i
		case msgEnd:
			in.over = true
		case msgAbort:
			in.over = true
			return 0, &FarError{Text: clipForeign(i.text)}
		case msgFlush:
			in.later = append(in.later, i.passed)
		default:
			return 0, errUnended
		}
	}
	n := copy(p, in.now.data)
	if in.now.data = in.now.data[n:]; len(in.now.data) == 0 {
		dropData(in.now.buf)
		in.now.buf = nil
	}
	return n, nil
}

// skip drops what is left of the NAR and returns how much that was.
func (in *inbox) skip() (n int64, err error) {
	n = int64(len(in.now.data))
	in.now = item{}
	for !in.over {
		i, err := in.take()
		if err != nil {
			return n, err
		}
		switch i.kind {
		case msgData:
			n += int64(len(i.data))
			dropData(i.buf)
		case msgEnd, msgAbort:
			in.over = true
		case msgFlush:
			in.later = append(in.later, i.passed)
		default:
			return n, errUnended
		}
	}
	return n, nil
}

// passLater says that the flushes in the middle of the last NAR have been passed.
func (in *inbox) passLater() {
	for _, passed := range in.later {
		close(passed)
	}
	in.later = nil
}

// channelNumber reads the number of a channel.
func (p *payload) channelNumber() uint64 { return p.uvarint(maxChannels - 1) }

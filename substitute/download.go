package substitute

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/copy-closure/copy-closure/internal/show"
)

// A download is a file on its way, over as many connections as it takes.
type download struct {
	*HTTP
	ctx    context.Context
	url    *url.URL
	offset int64 // of the next byte

	attempts int
	fresh    int64           // bytes since the last request
	request  context.Context // of the last request
	cancel   context.CancelCauseFunc
	body     io.ReadCloser
	stalled  *time.Timer
	pace     pace
	broken   error // for good

	encoding Compression // of the body, beside the file's own; empty: none
	size     int64       // of the file; -1: not known
	tag      string      // the file's strong ETag; empty: none
}

// errStalled is the cause of a request whose server was silent for too long.
var errStalled = errors.New("the server stopped sending")

// errSlow is that of a server that sends next to nothing.
var errSlow = fmt.Errorf("the server sends less than %d bytes a second", slowestRate)

// slowestRate is how many bytes a second a server must send, over a window of twice the
// time that it may be silent.
const slowestRate = 100

// A pace measures what comes while it is waited for. That the reader does something else
// is not the server's fault.
type pace struct {
	waited time.Duration
	bytes  int
}

// slow reports whether a window has ended in which too little came.
func (p *pace) slow(n int, waited, window time.Duration) bool {
	p.bytes += n
	if p.waited += waited; p.waited < window || window <= 0 {
		return false
	}
	slow := float64(p.bytes) < slowestRate*p.waited.Seconds()
	*p = pace{}
	return slow
}

const (
	firstPause = 250 * time.Millisecond // before the second attempt; doubles each time
	maxPause   = 30 * time.Second
	// worthNewAttempts is how much a connection must have brought for the count of
	// attempts to begin again.
	worthNewAttempts = 1 << 20
)

// begin requests the file until that succeeds or there is no point in another attempt.
func (d *download) begin() error {
	for {
		err := d.connect()
		if err == nil || !d.mayRetry(err) {
			return err
		}
		if err := d.pause(err); err != nil {
			return err
		}
	}
}

// mayRetry reports whether another attempt makes sense. A server that cannot be
// reached, or says nothing at all, is not waited for again: others may have the file.
func (d *download) mayRetry(err error) bool {
	if d.ctx.Err() != nil || d.attempts+1 >= d.web.options.Attempts {
		return false
	}
	var status *StatusError
	if errors.As(err, &status) {
		return status.temporary()
	}
	var changed *changedError
	if errors.As(err, &changed) {
		return false
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return false
	}
	var timeout net.Error
	if errors.Is(err, errStalled) || errors.As(err, &timeout) && timeout.Timeout() {
		return d.fresh > 0
	}
	return isBroken(err)
}

// isBroken tells a connection that broke from one that never made sense, such as one
// with a certificate of another host. net/http keeps the types of HTTP/2's errors to
// itself.
func isBroken(err error) bool {
	var op *net.OpError
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.As(err, &op) ||
		strings.Contains(err.Error(), "stream error") || strings.Contains(err.Error(), "GOAWAY")
}

// pause waits before the next attempt, each time longer, and as long as the server
// asks for. The waiting times differ so that many clients do not return at once.
func (d *download) pause(reason error) error {
	wait := firstPause << d.attempts
	wait += rand.N(wait)
	if d.attempts == 0 && d.fresh > 0 {
		wait = 0 // it was working a moment ago
	}
	var status *StatusError
	if errors.As(reason, &status) && status.RetryAfter > 0 {
		wait = status.RetryAfter
	}
	if wait > maxPause {
		return reason
	}
	d.attempts++
	d.web.options.Logger.Debug("asking once more", "reason", reason, "after", wait)
	select {
	case <-time.After(wait):
		return nil
	case <-d.ctx.Done():
		return context.Cause(d.ctx)
	}
}

// connect requests the file from offset on.
func (d *download) connect() error {
	ctx, cancel := context.WithCancelCause(d.ctx)
	r, err := d.newRequest(ctx, http.MethodGet, d.url, nil)
	if err != nil {
		cancel(nil)
		return err
	}
	if d.offset > 0 {
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-", d.offset))
		if d.tag != "" {
			r.Header.Set("If-Range", d.tag)
		}
	}
	d.fresh = 0
	response, err := d.do(r, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		cancel(nil)
		return err
	}
	d.request, d.cancel, d.body = ctx, cancel, response.Body
	d.stalled = time.AfterFunc(time.Hour, func() { cancel(errStalled) })
	d.stalled.Stop()
	if err := d.accept(response); err != nil {
		return errors.Join(err, d.Close())
	}
	return nil
}

// A changedError says that a file is not the one any more of which we have a part.
type changedError struct{ url string }

func (e *changedError) Error() string { return e.url + ": the file changed while it was read" }

// accept compares an answer with what earlier ones said of the same file. Another tag is
// no reason to give up, as each of several servers behind one name may have its own: the
// hash of the whole tells whether the parts belong together.
func (d *download) accept(response *http.Response) error {
	tag := response.Header.Get("ETag")
	if strings.HasPrefix(tag, "W/") {
		tag = "" // a weak one does not promise the same bytes
	}
	first, size := int64(0), response.ContentLength
	if span := response.Header.Get("Content-Range"); span != "" || response.StatusCode == http.StatusPartialContent {
		var err error
		if first, size, err = parseContentRange(span); err != nil {
			return fmt.Errorf("%s: %w", show.URL(d.url.String()), err)
		}
	}
	encoding := contentEncoding(response.Header)
	if d.size >= 0 && size >= 0 && size != d.size || d.offset > 0 && encoding != d.encoding {
		return &changedError{show.URL(d.url.String())}
	}
	d.size, d.tag, d.encoding = max(size, d.size), tag, encoding
	switch {
	case first == d.offset:
		return nil
	case first > 0:
		return fmt.Errorf("%s: the server sends from byte %d on, not from %d on", show.URL(d.url.String()), first, d.offset)
	}
	return d.skip(d.offset) // this server knows no ranges
}

// contentEncoding returns what a server did to a file for the way; empty: nothing.
// "aws-chunked" is what programs have sent to S3, which keeps the word and not the chunks.
func contentEncoding(header http.Header) Compression {
	var all []string
	for word := range strings.SplitSeq(header.Get("Content-Encoding"), ",") {
		word = strings.ToLower(strings.TrimSpace(word))
		if word != "" && word != "identity" && word != "aws-chunked" {
			all = append(all, word)
		}
	}
	return Compression(strings.Join(all, ", "))
}

// parseContentRange reads "bytes FIRST-LAST/SIZE"; size is -1 if it is not said.
func parseContentRange(text string) (first, size int64, err error) {
	span, whole, ok := strings.Cut(strings.TrimPrefix(text, "bytes "), "/")
	begin, _, dash := strings.Cut(span, "-")
	first, err = strconv.ParseInt(begin, 10, 64)
	if !ok || !dash || err != nil || first < 0 {
		return 0, 0, fmt.Errorf("Content-Range %.100q is damaged", text)
	}
	if whole == "*" {
		return first, -1, nil
	}
	if size, err = strconv.ParseInt(whole, 10, 64); err != nil || size <= first {
		return 0, 0, fmt.Errorf("Content-Range %.100q is damaged", text)
	}
	return first, size, nil
}

// skip passes over bytes that we have.
func (d *download) skip(n int64) error {
	var part [32 << 10]byte
	for n > 0 {
		got, err := d.read(part[:min(n, int64(len(part)))])
		n -= int64(got)
		if err != nil && n > 0 {
			return err
		}
	}
	return nil
}

// contents undoes what the server did to the file for the way.
func (d *download) contents() (io.ReadCloser, error) {
	if d.encoding == "" {
		return d, nil
	}
	plain, err := d.encoding.NewReader(d)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: Content-Encoding: %w", show.URL(d.url.String()), err), d.Close())
	}
	return decoded{plain, d}, nil
}

// decoded is a decompressor that closes what it reads from, too.
type decoded struct {
	io.ReadCloser
	below io.Closer
}

func (d decoded) Close() error { return errors.Join(d.ReadCloser.Close(), d.below.Close()) }

// Read implements io.Reader.
func (d *download) Read(p []byte) (int, error) {
	for d.broken == nil {
		n, err := d.read(p)
		d.offset += int64(n)
		d.fresh += int64(n)
		switch {
		case err == io.EOF:
			return n, err
		case n > 0 || err == nil:
			return n, nil // what broke is met again
		}
		d.broken = d.resume(err)
	}
	return 0, d.broken
}

// resume goes on after an error, or returns it.
func (d *download) resume(err error) error {
	if d.fresh >= worthNewAttempts {
		d.attempts = 0
	}
	if !d.mayRetry(err) {
		return err
	}
	d.Close()
	if err := d.pause(err); err != nil {
		return err
	}
	if err := d.begin(); err != nil {
		return fmt.Errorf("after %d bytes: %w", d.offset, err)
	}
	return nil
}

// read reads from the connection, for which it waits only so long.
func (d *download) read(p []byte) (int, error) {
	start := time.Now()
	d.stalled.Reset(d.web.options.StallTimeout)
	n, err := d.body.Read(p)
	d.stalled.Stop()
	if d.pace.slow(n, time.Since(start), 2*d.web.options.StallTimeout) {
		d.cancel(errSlow) // the next Read fails
	}
	if err == io.EOF && d.size > d.offset+int64(n) && d.encoding == "" {
		err = io.ErrUnexpectedEOF
	}
	if err == nil || err == io.EOF {
		return n, err
	}
	if cause := context.Cause(d.request); cause != nil {
		err = cause
	}
	return n, fmt.Errorf("%s: %w", show.URL(d.url.String()), err)
}

// Close implements io.Closer.
func (d *download) Close() error {
	if d.body == nil {
		return nil
	}
	d.cancel(nil)
	err := d.body.Close()
	d.body = nil
	return err
}

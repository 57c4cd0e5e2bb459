package substitute

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/copy-closure/copy-closure/internal/show"
)

// Put implements WritableFiles on servers that take PUT, such as nginx with
// dav_methods. A server that wants directories made first gets that, too.
func (h *HTTP) Put(ctx context.Context, name string, contents io.ReadSeeker, size int64) error {
	u, err := h.fileURL(name)
	if err != nil {
		return err
	}
	err = h.retry(ctx, func() error { return h.put(ctx, u, contents, size) })
	if status, ok := errors.AsType[*StatusError](err); ok && status.Code == http.StatusConflict {
		if err := h.exchange(ctx, "MKCOL", u.JoinPath("..", "/"), nil, 0); err != nil {
			return fmt.Errorf("the directory of %s is missing: %w", show.URL(u.String()), err)
		}
		err = h.retry(ctx, func() error { return h.put(ctx, u, contents, size) })
	}
	return notWritable(err)
}

// fileURL returns the URL of a file of this cache. A name may come from a narinfo, and must
// not lead out of the cache.
func (h *HTTP) fileURL(name string) (*url.URL, error) {
	if err := checkFileName(name); err != nil {
		return nil, fmt.Errorf("%s: %w", h, err)
	}
	return h.base.JoinPath(name), nil
}

// A NotWritableError says that a server takes no files, or not from us.
type NotWritableError struct{ Status *StatusError }

func (e *NotWritableError) Error() string {
	return fmt.Sprintf("%v to a request that changes the cache: it must allow PUT and DELETE to this user", e.Status)
}

// notWritable keeps an answer to PUT from looking like that of a file that is missing.
func notWritable(err error) error {
	if status, ok := errors.AsType[*StatusError](err); ok {
		switch status.Code {
		case http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
			return &NotWritableError{status}
		}
	}
	return err
}

// put sends a file once.
func (h *HTTP) put(ctx context.Context, u *url.URL, contents io.ReadSeeker, size int64) error {
	if _, err := contents.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return h.exchange(ctx, http.MethodPut, u, contents, size)
}

// exchange sends a request that changes something. A server that stops taking the body
// is given up.
func (h *HTTP) exchange(ctx context.Context, method string, u *url.URL, body io.Reader, size int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if body != nil && size > 0 {
		stalled := time.AfterFunc(time.Hour, func() { cancel(errStalled) })
		defer stalled.Stop()
		stalled.Stop()
		body = &watchedReader{body, stalled, h.web.options.StallTimeout}
	} else if body != nil {
		body = http.NoBody
	}
	r, err := h.newRequest(ctx, method, u, body)
	if err != nil {
		return err
	}
	r.ContentLength = size
	if method == http.MethodPut {
		r.Header.Set("Content-Type", contentType(u.Path[len(h.base.Path):]))
	}
	response, err := h.do(r, http.StatusOK, http.StatusCreated, http.StatusAccepted, http.StatusNoContent)
	if err != nil {
		return err
	}
	io.CopyN(io.Discard, response.Body, maxAnswerHeader)
	return response.Body.Close()
}

// A watchedReader starts a timer again at each read, and stops it at the end.
type watchedReader struct {
	io.Reader
	stalled *time.Timer
	most    time.Duration
}

func (r *watchedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil {
		r.stalled.Stop()
	} else {
		r.stalled.Reset(r.most)
	}
	return n, err
}

// retry repeats what failed for reasons that pass.
func (h *HTTP) retry(ctx context.Context, do func() error) error {
	d := &download{HTTP: h, ctx: ctx}
	for {
		err := do()
		if err == nil || !d.mayRetry(err) {
			return err
		}
		if err := d.pause(err); err != nil {
			return err
		}
	}
}

// Size implements WritableFiles. It is -1 where the server does not tell.
func (h *HTTP) Size(ctx context.Context, name string) (size int64, err error) {
	u, err := h.fileURL(name)
	if err != nil {
		return 0, err
	}
	err = h.retry(ctx, func() error {
		r, err := h.newRequest(ctx, http.MethodHead, u, nil)
		if err != nil {
			return err
		}
		response, err := h.do(r, http.StatusOK)
		if err != nil {
			return err
		}
		size = response.ContentLength
		return response.Body.Close()
	})
	return size, err
}

// Remove implements WritableFiles.
func (h *HTTP) Remove(ctx context.Context, name string) error {
	u, err := h.fileURL(name)
	if err != nil {
		return err
	}
	err = h.retry(ctx, func() error { return h.exchange(ctx, http.MethodDelete, u, nil, 0) })
	if status, ok := errors.AsType[*StatusError](err); ok && (status.Code == http.StatusNotFound || status.Code == http.StatusGone) {
		return nil
	}
	return notWritable(err)
}

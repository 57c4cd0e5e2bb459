package substitute

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/copy-closure/copy-closure/internal/show"
)

// WebOptions say how web servers are used. The zero value is usable.
type WebOptions struct {
	ConnectTimeout time.Duration // until a connection stands; 0: 15 s, negative: no limit
	StallTimeout   time.Duration // for a server that says nothing; 0: 30 s, negative: no limit
	Attempts       int           // at one request; 0: 5
	Connections    int           // to one server at once; 0: 128, negative: no limit
	NoHTTP2        bool          // speak HTTP/1.1 only
	// CertificateFile has the certificates of those who vouch for servers, in PEM; empty:
	// those of the system do.
	CertificateFile string
	// Credentials returns the name and the password for a host, as a netrc file has
	// them; nil: there are none.
	Credentials func(host string) (login, password string, ok bool)
	Logger      *slog.Logger // nil discards
}

// A Web reaches the caches on web servers, which share its connections. Its methods
// may be called concurrently.
type Web struct {
	options   WebOptions
	client    *http.Client
	unvouched error // why no https server can be trusted
}

// noLimit is a timeout of which the options say that there is none.
const noLimit = 100 * 365 * 24 * time.Hour

const (
	maxRedirects    = 10
	maxAnswerHeader = 64 << 10 // bytes of a response's header
	// webRequests is the number of small requests that are under way at once: over
	// 50 ms it makes 2,500 of them a second.
	webRequests = 128
	// closedRequests is the same where each takes a connection of its own: servers
	// that know no better way let few wait, Python's http.server 5, and what the
	// kernel turns away then is tried again after seconds.
	closedRequests = 4
)

// NewWeb prepares connections; proxies are those of the environment.
func NewWeb(o WebOptions) *Web {
	o.ConnectTimeout = timeout(o.ConnectTimeout, 15*time.Second)
	o.StallTimeout = timeout(o.StallTimeout, 30*time.Second)
	if o.Attempts == 0 {
		o.Attempts = 5
	}
	if o.Connections == 0 {
		o.Connections = webRequests
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	transport := &http.Transport{
		DialContext:            (&net.Dialer{Timeout: o.ConnectTimeout}).DialContext,
		TLSHandshakeTimeout:    o.ConnectTimeout,
		ResponseHeaderTimeout:  o.StallTimeout,
		IdleConnTimeout:        time.Minute,
		MaxIdleConnsPerHost:    webRequests,
		MaxConnsPerHost:        max(o.Connections, 0),
		MaxResponseHeaderBytes: maxAnswerHeader,
	}
	w := &Web{options: o, client: &http.Client{Transport: transport, CheckRedirect: checkRedirect}}
	w.unvouched = o.apply(transport)
	return w
}

// timeout is what an option means.
func timeout(option, standard time.Duration) time.Duration {
	switch {
	case option == 0:
		return standard
	case option < 0:
		return noLimit
	}
	return option
}

// apply gives a transport what holds for web servers and buckets alike. The error says
// why no https server can be trusted.
func (o WebOptions) apply(t *http.Transport) error {
	t.Proxy = environmentProxy()
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	t.ForceAttemptHTTP2 = !o.NoHTTP2
	t.DisableCompression = true // sizes and ranges are those of the file
	if o.CertificateFile == "" {
		return nil
	}
	t.TLSClientConfig.RootCAs = x509.NewCertPool()
	text, err := os.ReadFile(o.CertificateFile)
	if err == nil && !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(text) {
		err = fmt.Errorf("%s: no certificate in it", o.CertificateFile)
	}
	if err != nil {
		return fmt.Errorf("ssl-cert-file: %w", err)
	}
	return nil
}

// checkRedirect follows redirects of requests that read. As with curl, credentials go to
// the origin that they are for and to no other; net/http would send them to other ports
// and subdomains, too. The next server does not learn where the request came from.
func checkRedirect(next *http.Request, before []*http.Request) error {
	first := before[0]
	if first.Method != http.MethodGet && first.Method != http.MethodHead {
		return http.ErrUseLastResponse // it would be followed without what was sent
	}
	if len(before) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	next.Header.Del("Referer")
	next.URL.User = nil
	for _, r := range append(before, next) {
		if !sameOrigin(first.URL, r.URL) {
			next.Header.Del("Authorization") // also on the way back: the other has chosen it
		}
	}
	return checkDowngrade(first.URL, next.URL)
}

// checkDowngrade refuses the way from an encrypted connection to another.
func checkDowngrade(from, to *url.URL) error {
	if from.Scheme == "https" && to.Scheme != "https" {
		return fmt.Errorf("redirected from https to %s", to.Scheme)
	}
	return nil
}

// sameOrigin reports whether two URLs have scheme, host and port in common.
func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" || u.Scheme != "https" {
		return cmp.Or(p, "80")
	}
	return "443"
}

// HTTP is a cache on a web server, http:// or https://.
type HTTP struct {
	web  *Web
	base *url.URL // ends with a slash; without user
	user *url.Userinfo

	closes atomic.Bool   // the server ends a connection with each answer
	slots  chan struct{} // of the connections to such a server that are being made
}

// Cache returns the cache at an address, which may hold a user and a password. It
// asks nothing.
func (w *Web) Cache(address string) (*HTTP, error) {
	base, err := url.Parse(address)
	if err != nil {
		return nil, errors.New("this is no URL") // the error would show the password
	}
	if base.Scheme != "http" && base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("%s is not http://HOST/… or https://HOST/…", show.URL(address))
	}
	if base.Scheme == "https" && w.unvouched != nil {
		return nil, fmt.Errorf("%s: %w", base.Redacted(), w.unvouched)
	}
	h := &HTTP{web: w, user: base.User, slots: make(chan struct{}, closedRequests)}
	base.User, base.RawQuery, base.Fragment = nil, "", ""
	h.base = base.JoinPath("/")
	return h, nil
}

// String implements Files.
func (h *HTTP) String() string { return strings.TrimSuffix(h.base.String(), "/") }

// Identity implements identified.
func (h *HTTP) Identity() string {
	login, _, _ := h.credentials()
	return login + " " + h.String()
}

// credentials returns what the cache's own server is told.
func (h *HTTP) credentials() (login, password string, ok bool) {
	if h.user != nil {
		password, _ = h.user.Password()
		return h.user.Username(), password, true
	}
	if h.web.options.Credentials == nil {
		return "", "", false
	}
	return h.web.options.Credentials(h.base.Hostname())
}

// Open implements Files. A contents that breaks off is taken up again where it
// broke, as often as WebOptions.Attempts allow.
func (h *HTTP) Open(ctx context.Context, name string, offset int64) (io.ReadCloser, error) {
	u, err := h.base.Parse(name)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%s: %.200q is not the name of a file in a cache", h, show.URL(name))
	}
	u.User = nil
	if err := checkDowngrade(h.base, u); err != nil {
		return nil, fmt.Errorf("%s: %w", show.URL(u.String()), err)
	}
	d := &download{HTTP: h, ctx: ctx, url: u, offset: offset, size: -1}
	if err := d.begin(); err != nil {
		return nil, err
	}
	return d.contents()
}

// newRequest returns a request for a file of this cache. Credentials go to the cache's
// own server and to no other.
func (h *HTTP) newRequest(ctx context.Context, method string, u *url.URL, body io.Reader) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	r.Header.Set("User-Agent", "copy-closure")
	if login, password, ok := h.credentials(); ok && sameOrigin(u, h.base) {
		r.SetBasicAuth(login, password)
	}
	return r, nil
}

// A StatusError is an answer that is not the file. That it is missing is
// fs.ErrNotExist.
type StatusError struct {
	URL        string
	Code       int
	RetryAfter time.Duration // 0: not said
}

func (e *StatusError) Error() string {
	text := fmt.Sprintf("%s: the server answers %d %s", e.URL, e.Code, http.StatusText(e.Code))
	switch e.Code {
	case http.StatusUnauthorized, http.StatusProxyAuthRequired:
		text += "; put a line for this host into the netrc file, machine HOST login NAME password WORD, or NAME:WORD@ before the host in the URL"
	}
	return text
}

// Is makes absence recognizable. A server that may not list its files, as of S3, says
// "forbidden" of those that are missing.
func (e *StatusError) Is(target error) bool {
	switch e.Code {
	case http.StatusNotFound, http.StatusGone, http.StatusForbidden:
		return target == fs.ErrNotExist
	}
	return false
}

// temporary reports whether the same request may succeed later.
func (e *StatusError) temporary() bool {
	switch e.Code {
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported, http.StatusNetworkAuthenticationRequired:
		return false
	case http.StatusTooManyRequests, http.StatusRequestTimeout:
		return true
	}
	return e.Code >= 500
}

// do sends a request and returns an answer that has one of the codes.
func (h *HTTP) do(r *http.Request, codes ...int) (*http.Response, error) {
	response, err := h.roundTrip(r)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err // it shows the whole URL once more
		}
		if cause := context.Cause(r.Context()); cause != nil {
			err = cause
		}
		return nil, fmt.Errorf("%s: %w", show.URL(r.URL.String()), err)
	}
	for _, code := range codes {
		if response.StatusCode == code {
			return response, nil
		}
	}
	io.CopyN(io.Discard, response.Body, maxAnswerHeader) // so that the connection can be used again
	response.Body.Close()
	return nil, &StatusError{show.URL(r.URL.String()), response.StatusCode, retryAfter(response.Header, time.Now())}
}

// roundTrip sends a request when it is its turn.
func (h *HTTP) roundTrip(r *http.Request) (*http.Response, error) {
	if h.closes.Load() {
		select {
		case h.slots <- struct{}{}:
			defer func() { <-h.slots }()
		case <-r.Context().Done():
			return nil, context.Cause(r.Context())
		}
	}
	response, err := h.web.client.Do(r)
	if err == nil {
		h.closes.Store(response.Close)
	}
	return response, err
}

// retryAfter reads the header of that name: seconds, or a date.
func retryAfter(header http.Header, now time.Time) time.Duration {
	text := header.Get("Retry-After")
	if n, err := strconv.Atoi(text); err == nil && n > 0 {
		return time.Duration(min(n, 3600)) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil && at.After(now) {
		return at.Sub(now)
	}
	return 0
}

package e2e_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// An s3Identity is somebody who may use a bucket.
type s3Identity struct{ secret, token string }

// An s3Guard lets a request through to an S3 server only if its signature, version 4 of
// Amazon's, is right, or if it is an anonymous one that reads. Who asks a virtual machine
// for its credentials at /credentials is told those of "machine".
type s3Guard struct {
	http.Handler
	region     string
	identities map[string]s3Identity // by access key
}

// s3Name is a name of the server that knows buckets by their hosts' names only.
const s3Name = "s3.test"

const s3TimeForm = "20060102T150405Z"

func (g *s3Guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/credentials" {
		id := g.identities["machine"]
		fmt.Fprintf(w, `{"AccessKeyId":"machine","SecretAccessKey":%q,"Token":%q,"Expiration":"2099-01-01T00:00:00Z"}`, id.secret, id.token)
		return
	}
	if r.Host == s3Name {
		http.Error(w, "there is no bucket with this host's name", http.StatusBadRequest)
		return
	}
	anonymous := r.Header.Get("Authorization") == "" && (r.Method == http.MethodGet || r.Method == http.MethodHead)
	if !anonymous {
		if err := g.check(r, time.Now()); err != nil {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, "<Error><Code>SignatureDoesNotMatch</Code><Message>%v</Message></Error>", err)
			return
		}
	}
	g.Handler.ServeHTTP(w, r)
}

// check computes the signature that a request must have.
func (g *s3Guard) check(r *http.Request, now time.Time) error {
	fields, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return errors.New("there is no signature")
	}
	said := make(map[string]string)
	for field := range strings.SplitSeq(fields, ",") {
		key, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		said[key] = value
	}
	date := r.Header.Get("X-Amz-Date")
	at, err := time.Parse(s3TimeForm, date)
	if err != nil || at.Sub(now).Abs() > 15*time.Minute {
		return fmt.Errorf("it was signed at %q", date)
	}
	key, scope, _ := strings.Cut(said["Credential"], "/")
	id, ok := g.identities[key]
	if want := strings.Join([]string{date[:8], g.region, "s3", "aws4_request"}, "/"); !ok || scope != want {
		return fmt.Errorf("the credential is %q, it should be a known one in %s", said["Credential"], want)
	}
	if token := r.Header.Get("X-Amz-Security-Token"); token != id.token {
		return fmt.Errorf("the session's token is %q", token)
	}
	signed := strings.Split(said["SignedHeaders"], ";")
	if err := checkSignedHeaders(r, signed); err != nil {
		return err
	}
	if err := checkPayload(r); err != nil {
		return err
	}
	request := sha256.Sum256([]byte(canonicalRequest(r, signed)))
	text := "AWS4-HMAC-SHA256\n" + date + "\n" + scope + "\n" + hex.EncodeToString(request[:])
	mac := []byte("AWS4" + id.secret)
	for _, part := range append(strings.Split(scope, "/"), text) {
		h := hmac.New(sha256.New, mac)
		io.WriteString(h, part)
		mac = h.Sum(nil)
	}
	if want := hex.EncodeToString(mac); said["Signature"] != want {
		return fmt.Errorf("the signature is %s, it should be %s", said["Signature"], want)
	}
	return nil
}

// checkSignedHeaders wants the list sorted, with the host and all headers of the service
// in it.
func checkSignedHeaders(r *http.Request, signed []string) error {
	if !slices.IsSorted(signed) || !slices.Contains(signed, "host") {
		return fmt.Errorf("the signed headers are %v", signed)
	}
	for name := range r.Header {
		if name := strings.ToLower(name); strings.HasPrefix(name, "x-amz-") && !slices.Contains(signed, name) {
			return fmt.Errorf("the header %s is not signed", name)
		}
	}
	return nil
}

// checkPayload holds the body against its hash, unless that is left out on purpose.
func checkPayload(r *http.Request) error {
	want := r.Header.Get("X-Amz-Content-Sha256")
	if want == "UNSIGNED-PAYLOAD" {
		return nil
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != want {
		return fmt.Errorf("the body's hash is %x, signed is %q", sum, want)
	}
	return nil
}

func canonicalRequest(r *http.Request, signed []string) string {
	var query []string
	for key, values := range r.URL.Query() {
		for _, value := range values {
			query = append(query, s3Escape(key, "")+"="+s3Escape(value, ""))
		}
	}
	slices.Sort(query)
	var headers strings.Builder
	for _, name := range signed {
		value := strings.Join(r.Header.Values(name), ",")
		switch name {
		case "host":
			value = r.Host
		case "content-length":
			value = strconv.FormatInt(r.ContentLength, 10)
		}
		fmt.Fprintf(&headers, "%s:%s\n", name, strings.Join(strings.Fields(value), " "))
	}
	return strings.Join([]string{
		r.Method, s3Escape(r.URL.Path, "/"), strings.Join(query, "&"), headers.String(),
		strings.Join(signed, ";"), r.Header.Get("X-Amz-Content-Sha256"),
	}, "\n")
}

// s3Escape leaves letters, digits, "-", ".", "_", "~" and what is in also as they are.
func s3Escape(text, also string) string {
	var b strings.Builder
	for _, c := range []byte(text) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~"+also, c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// TestS3Guard has the guard judge the example that Amazon has published, and the same
// with a detail changed.
func TestS3Guard(t *testing.T) {
	g := &s3Guard{region: "us-east-1", identities: map[string]s3Identity{
		"AKIAIOSFODNN7EXAMPLE": {secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"},
	}}
	now := time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name   string
		change func(*http.Request)
		now    time.Time
		right  bool
	}{
		{"as published", func(*http.Request) {}, now, true},
		{"another path", func(r *http.Request) { r.URL.Path = "/test.tx" }, now, false},
		{"a query", func(r *http.Request) { r.URL.RawQuery = "acl" }, now, false},
		{"another method", func(r *http.Request) { r.Method = "DELETE" }, now, false},
		{"another range", func(r *http.Request) { r.Header.Set("Range", "bytes=0-8") }, now, false},
		{"another host", func(r *http.Request) { r.Host = "other.s3.amazonaws.com" }, now, false},
		{"a further header", func(r *http.Request) { r.Header.Set("X-Amz-Acl", "private") }, now, false},
		{"a token", func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", "x") }, now, false},
		{"a body", func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("x")) }, now, false},
		{"a day later", func(*http.Request) {}, now.AddDate(0, 0, 1), false},
		{"none", func(r *http.Request) { r.Header.Del("Authorization") }, now, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "http://examplebucket.s3.amazonaws.com/test.txt", nil)
			r.Header.Set("Range", "bytes=0-9")
			r.Header.Set("X-Amz-Date", "20130524T000000Z")
			r.Header.Set("X-Amz-Content-Sha256", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
			r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"+
				"SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"+
				"Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41")
			test.change(r)
			if err := g.check(r, test.now); (err == nil) != test.right {
				t.Errorf("it is right: %t (%v)", err == nil, err)
			}
		})
	}
}

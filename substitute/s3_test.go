package substitute_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/copy-closure/copy-closure/substitute"
)

// bucket serves every object of a bucket with one body, which has a Content-Encoding.
func bucket(t *testing.T, encoding string, body []byte) *substitute.S3 {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "a")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "b")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"one"`)
		w.Header().Set("Content-Encoding", encoding)
		http.ServeContent(w, r, "", time.Unix(1, 0), bytes.NewReader(body))
	}))
	t.Cleanup(server.Close)
	files, err := substitute.NewS3("s3://releases?endpoint="+server.URL, substitute.WebOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestS3ContentEncoding(t *testing.T) {
	for encoding, c := range map[string]substitute.Compression{
		"gzip": substitute.Gzip, "zstd": substitute.Zstd, "br": substitute.Brotli,
		"identity": substitute.None, "aws-chunked": substitute.None, "aws-chunked,gzip": substitute.Gzip,
	} {
		if got, err := fetch(t, bucket(t, encoding, compress(t, c, []byte(contents))), "a.narinfo"); got != contents || err != nil {
			t.Errorf("%s: got %d bytes, %v", encoding, len(got), err)
		}
	}
	_, err := fetch(t, bucket(t, "lrzip", nil), "a.narinfo")
	if err == nil || !strings.Contains(err.Error(), "unsupported compression") {
		t.Errorf("an unknown encoding: %v", err)
	}
}

// TestIdentity must not mix what it knows of different caches.
func TestIdentity(t *testing.T) {
	seen := make(map[string]string)
	for _, address := range []string{
		"s3://releases", "s3://releases?region=eu-west-1", "s3://releases?endpoint=127.0.0.1:1",
		"s3://releases?endpoint=127.0.0.1:2", "s3://releases?profile=other",
	} {
		files, err := substitute.NewS3(address, substitute.WebOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if other := seen[files.Identity()]; other != "" {
			t.Errorf("%s and %s are the same", address, other)
		}
		seen[files.Identity()] = address
	}
	for _, address := range []string{"http://h/c", "https://h/c", "http://h:81/c", "http://a:secret@h/c", "http://b:secret@h/c"} {
		files, err := substitute.NewWeb(substitute.WebOptions{}).Cache(address)
		if err != nil {
			t.Fatal(err)
		}
		if other := seen[files.Identity()]; other != "" || strings.Contains(files.Identity(), "secret") {
			t.Errorf("%s: %q, as %s", address, files.Identity(), other)
		}
		seen[files.Identity()] = address
	}
}

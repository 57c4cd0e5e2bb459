package substitute

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/copy-closure/copy-closure/internal/show"
)

// S3 is a cache in a bucket, s3://. Every file of it appears as a whole.
type S3 struct {
	client *minio.Core
	bucket string
	place  string // server, region and profile
}

const (
	// s3Part is how much of a large file is sent in one request; larger files are sent
	// in several at once.
	s3Part = 64 << 20 // bytes
	// s3Resumes is how often a request that failed is made again, and how often a file
	// that breaks off while it is read is asked for from there on.
	s3Resumes = 5
	// metadataTimeout is for the service that gives credentials to virtual machines,
	// which is missing elsewhere.
	metadataTimeout = 2 * time.Second
	// defaultRegion is that of Nix.
	defaultRegion = "us-east-1"
)

// NewS3 prepares access to the bucket of s3://BUCKET with Nix's parameters endpoint,
// region, profile, scheme and addressing-style. Credentials are looked for in the
// environment, the files of the aws program and the virtual machine's metadata; without
// any, requests are anonymous. Of o only CertificateFile matters. Nothing is asked of
// the bucket yet.
func NewS3(address string, o WebOptions) (*S3, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "s3" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("%.200q is not in the form s3://BUCKET?endpoint=…&region=…", show.URL(address))
	}
	query := u.Query()
	lookup, err := addressingStyle(query.Get("addressing-style"), query.Has("endpoint"))
	if err != nil {
		return nil, err
	}
	region := query.Get("region")
	if region == "" {
		region = defaultRegion
	}
	host, secure, err := s3Endpoint(query, region)
	if err != nil {
		return nil, err
	}
	transport, err := minio.DefaultTransport(secure)
	if err != nil {
		return nil, err
	}
	if err := o.apply(transport); err != nil && secure {
		return nil, fmt.Errorf("s3://%s: %w", u.Host, err)
	}
	transport.ForceAttemptHTTP2 = false // many requests at once are faster over many connections
	client, err := minio.NewCore(host, &minio.Options{
		Transport: transport,
		Creds:     s3Credentials(query.Get("profile")), Secure: secure, Region: region, BucketLookup: lookup, MaxRetries: s3Resumes,
	})
	if err != nil {
		return nil, err
	}
	client.SetAppInfo("copy-closure", "1")
	return &S3{client, u.Host, host + " " + region + " " + query.Get("profile")}, nil
}

// addressingStyle says where the bucket's name stands: in the path, as all servers
// understand it, or in the host's name, as Amazon wants it.
func addressingStyle(style string, endpoint bool) (minio.BucketLookupType, error) {
	switch {
	case style == "path", (style == "" || style == "auto") && endpoint:
		return minio.BucketLookupPath, nil
	case style == "virtual":
		return minio.BucketLookupDNS, nil
	case style == "", style == "auto":
		return minio.BucketLookupAuto, nil
	}
	return 0, fmt.Errorf("addressing-style is auto, path or virtual, not %.40q", style)
}

// s3Endpoint is the server of a bucket: HOST[:PORT], or a URL.
func s3Endpoint(query url.Values, region string) (host string, secure bool, err error) {
	endpoint, scheme := query.Get("endpoint"), query.Get("scheme")
	if endpoint == "" {
		endpoint = "s3." + region + ".amazonaws.com"
	}
	if before, rest, ok := strings.Cut(endpoint, "://"); ok {
		scheme, endpoint = before, strings.TrimSuffix(rest, "/")
	}
	switch scheme {
	case "", "https":
		return endpoint, true, nil
	case "http":
		return endpoint, false, nil
	}
	return "", false, fmt.Errorf("endpoint %.200q: the scheme is http or https", show.URL(endpoint))
}

// String implements Files.
func (s *S3) String() string { return "s3://" + s.bucket }

// Identity implements identified.
func (s *S3) Identity() string {
	return strings.Join([]string{s.String(), s.place, os.Getenv("AWS_PROFILE"), os.Getenv("AWS_ACCESS_KEY_ID")}, " ")
}

// failed says which file it was. A server that may not list the bucket says "access
// denied" of those that are missing.
func (s *S3) failed(what, name string, err error) error {
	if err == nil {
		return nil
	}
	answer := minio.ToErrorResponse(err)
	missing := answer.Code == minio.NoSuchKey || answer.StatusCode == http.StatusNotFound && answer.Code != minio.NoSuchBucket
	if missing || (what == "read" || what == "look at") && answer.Code == minio.AccessDenied {
		err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return fmt.Errorf("%s %s/%s: %w", what, s, name, err)
}

// Open implements Files. A file that breaks off is asked for again from there on.
func (s *S3) Open(ctx context.Context, name string, offset int64) (io.ReadCloser, error) {
	r := &s3Reader{S3: s, ctx: ctx, name: name, offset: offset}
	if err := r.open(); err != nil {
		return nil, err
	}
	if r.encoding == "" {
		return r, nil
	}
	plain, err := r.encoding.NewReader(r)
	if err != nil {
		return nil, errors.Join(r.failed("read", name, fmt.Errorf("Content-Encoding: %w", err)), r.Close())
	}
	return decoded{plain, r}, nil
}

// An s3Reader is a file that is being read.
type s3Reader struct {
	*S3
	ctx     context.Context
	name    string
	offset  int64
	tag     string // of the file's first part
	resumed int
	body    io.ReadCloser

	encoding Compression // of the body, beside the file's own; empty: none
}

func (r *s3Reader) open() error {
	var options minio.GetObjectOptions
	if r.offset > 0 {
		if err := options.SetRange(r.offset, 0); err != nil {
			return err
		}
	}
	if r.tag != "" {
		if err := options.SetMatchETag(r.tag); err != nil {
			return err
		}
	}
	body, info, header, err := r.client.GetObject(r.ctx, r.bucket, r.name, options)
	if err != nil {
		return r.failed("read", r.name, err)
	}
	r.body, r.tag, r.encoding = body, info.ETag, contentEncoding(header)
	return nil
}

// Read implements io.Reader.
func (r *s3Reader) Read(p []byte) (int, error) {
	n, err := r.body.Read(p)
	r.offset += int64(n)
	if err == nil || err == io.EOF {
		return n, err
	}
	if r.ctx.Err() != nil {
		return n, context.Cause(r.ctx)
	}
	if r.resumed == s3Resumes {
		return n, r.failed("read", r.name, err)
	}
	r.resumed++
	r.body.Close()
	return n, r.open()
}

// Close implements io.Closer.
func (r *s3Reader) Close() error { return r.body.Close() }

// Put implements WritableFiles. What it sends is not hashed for the signature of the
// request: a reader checks all hashes, and TLS does in between.
func (s *S3) Put(ctx context.Context, name string, contents io.ReadSeeker, size int64) error {
	if _, err := contents.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, err := s.client.Client.PutObject(ctx, s.bucket, name, contents, size, minio.PutObjectOptions{
		ContentType: contentType(name), PartSize: s3Part, DisableContentSha256: true,
	})
	return s.failed("write", name, err)
}

// Size implements WritableFiles.
func (s *S3) Size(ctx context.Context, name string) (int64, error) {
	info, err := s.client.StatObject(ctx, s.bucket, name, minio.StatObjectOptions{})
	return info.Size, s.failed("look at", name, err)
}

// List implements ListableFiles.
func (s *S3) List(ctx context.Context, prefix string) (map[string]File, error) {
	files := make(map[string]File)
	for object := range s.client.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: prefix}) {
		if object.Err != nil {
			return nil, s.failed("list", prefix, object.Err)
		}
		if !strings.HasSuffix(object.Key, "/") {
			files[object.Key] = File{object.Size, object.LastModified}
		}
	}
	return files, context.Cause(ctx)
}

// Remove implements WritableFiles.
func (s *S3) Remove(ctx context.Context, name string) error {
	err := s.client.RemoveObject(ctx, s.bucket, name, minio.RemoveObjectOptions{})
	if minio.ToErrorResponse(err).Code == minio.NoSuchKey {
		return nil
	}
	return s.failed("delete", name, err)
}

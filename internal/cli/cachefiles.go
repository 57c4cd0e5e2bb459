package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nixconf"
	"github.com/copy-closure/copy-closure/internal/show"
	"github.com/copy-closure/copy-closure/substitute"
)

// openCache returns the files of the cache at an address. Nothing is asked of it
// yet. Parameters behind a question mark are for those who read or write the cache.
func (p *program) openCache(ctx context.Context, address string) (substitute.Files, error) {
	scheme, rest, ok := strings.Cut(address, "://")
	switch {
	case !ok:
		return nil, usagef("cache %s: write it as a URL, such as file:///DIR or https://HOST", show.URL(address))
	case scheme == "file":
		dir, _, _ := strings.Cut(rest, "?")
		if !filepath.IsAbs(dir) {
			return nil, usagef("cache %s: the directory must be absolute, as in file:///DIR", show.URL(address))
		}
		return substitute.Dir(filepath.Clean(dir)), nil
	case scheme == "http" || scheme == "https":
		web, err := p.openWeb()
		if err != nil {
			return nil, err
		}
		cache, err := web.Cache(address)
		if err != nil {
			return nil, usagef("cache: %v", err)
		}
		return cache, nil
	case scheme == "s3":
		o, err := p.webOptions()
		if err != nil {
			return nil, err
		}
		cache, err := substitute.NewS3(address, o)
		if err != nil {
			return nil, usagef("cache: %v", err)
		}
		return cache, nil
	case scheme == "sftp":
		return p.openSFTP(ctx, address)
	}
	return nil, usagef("cache %s://…: there are file, http, https, s3 and sftp, not %q", scheme, scheme)
}

// openWeb returns what all caches on web servers share.
func (p *program) openWeb() (*substitute.Web, error) {
	if p.web != nil {
		return p.web, nil
	}
	o, err := p.webOptions()
	if err != nil {
		return nil, err
	}
	p.web = substitute.NewWeb(o)
	return p.web, nil
}

// webOptions returns what the configuration says of web servers.
func (p *program) webOptions() (substitute.WebOptions, error) {
	conf, err := nixconf.Load(os.LookupEnv)
	if err != nil {
		return substitute.WebOptions{}, err
	}
	netrc, err := nixconf.ReadNetrc(conf.NetrcFile())
	if err != nil {
		return substitute.WebOptions{}, fmt.Errorf("netrc-file: %w", err)
	}
	o := substitute.WebOptions{
		ConnectTimeout:  conf.ConnectTimeout(),
		StallTimeout:    conf.StallTimeout(),
		Attempts:        conf.DownloadAttempts(),
		NoHTTP2:         !conf.HTTP2(),
		CertificateFile: conf.CertificateFile(),
		Credentials:     netrc.Lookup,
		Logger:          p.log,
	}
	if n, set := conf.HTTPConnections(); set {
		o.Connections = n
		if n == 0 {
			o.Connections = -1 // no limit
		}
	}
	return o, nil
}

// cacheParameters returns what stands behind the question mark of a cache's address.
func cacheParameters(address string) (map[string]string, error) {
	_, query, _ := strings.Cut(address, "?")
	values, err := nixconf.ParseQuery(query)
	if err != nil {
		return nil, usagef("cache %s: %v", show.URL(address), err)
	}
	return values, nil
}

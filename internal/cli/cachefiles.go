package cli

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nixconf"
	"github.com/copy-closure/copy-closure/substitute"
)

// openCache returns the files of the cache at an address. Nothing is asked of it
// yet. Parameters behind a question mark are for those who read or write the cache.
func (p *program) openCache(ctx context.Context, address string) (substitute.Files, error) {
	scheme, rest, ok := strings.Cut(address, "://")
	switch {
	case !ok:
		return nil, usagef("cache %s: write it as a URL, such as file:///DIR or https://HOST", address)
	case scheme == "file":
		dir, _, _ := strings.Cut(rest, "?")
		if !filepath.IsAbs(dir) {
			return nil, usagef("cache %s: the directory must be absolute, as in file:///DIR", address)
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
		cache, err := substitute.NewS3(address)
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
	conf, err := nixconf.Load(os.Getenv)
	if err != nil {
		return nil, err
	}
	o := substitute.WebOptions{Logger: p.log}
	if o.ConnectTimeout, err = conf.ConnectTimeout(); err != nil {
		return nil, err
	}
	if o.StallTimeout, err = conf.StallTimeout(); err != nil {
		return nil, err
	}
	if o.Attempts, err = conf.DownloadAttempts(); err != nil {
		return nil, err
	}
	netrc, err := nixconf.ReadNetrc(conf.NetrcFile())
	if err != nil {
		return nil, fmt.Errorf("netrc-file: %w", err)
	}
	o.Credentials = netrc.Lookup
	p.web = substitute.NewWeb(o)
	return p.web, nil
}

// cacheParameters returns what stands behind the question mark of a cache's address.
func cacheParameters(address string) (url.Values, error) {
	_, query, _ := strings.Cut(address, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, usagef("cache: the parameters %q are not in the form NAME=VALUE&…", query)
	}
	return values, nil
}

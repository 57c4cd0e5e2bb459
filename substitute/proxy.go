package substitute

import (
	"fmt"
	"net/http"
	"net/url"
	"os"

	"golang.org/x/net/http/httpproxy"
)

// environmentProxy chooses the proxy for a request by the variables that curl reads:
// http_proxy, https_proxy and no_proxy, in small or capital letters, and all_proxy for
// what has none of its own.
func environmentProxy() func(*http.Request) (*url.URL, error) {
	config := httpproxy.FromEnvironment()
	all := os.Getenv("all_proxy")
	if all == "" {
		all = os.Getenv("ALL_PROXY")
	}
	if config.HTTPProxy == "" {
		config.HTTPProxy = all
	}
	if config.HTTPSProxy == "" {
		config.HTTPSProxy = all
	}
	choose := config.ProxyFunc()
	return func(r *http.Request) (*url.URL, error) {
		u, err := choose(r.URL)
		if err != nil { // it shows the password
			err = fmt.Errorf("the proxy of the environment for %s is no URL", r.URL.Scheme)
		}
		return u, err
	}
}

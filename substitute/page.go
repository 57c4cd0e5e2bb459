package substitute

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"html/template"
	"io/fs"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/copy-closure/copy-closure/internal/nix"
)

var (
	//go:embed page.html
	pageSource string
	//go:embed page.css
	pageStyle string

	pageTemplate = template.Must(template.New("page").Parse(pageSource))
)

const (
	pageStyleName = "page.css"
	// pagePolicy lets a browser load our style sheet and send our form, and nothing else.
	pagePolicy  = "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
	pagePaths   = 50  // on one page of the listing
	maxQuestion = 200 // bytes of what is looked for
)

// pageData is what the page shows.
type pageData struct {
	URL      string
	StoreDir nix.StoreDir
	Priority int
	Keys     []string
	Listing  *pageListing // nil: none
}

// A pageListing is one page of the paths in which the question occurs.
type pageListing struct {
	Question   string
	Found, All int
	First      int // number of the first path shown, from 1
	Last       int
	Paths      []pagePath
	Back, Next string // URLs; empty: none
}

type pagePath struct {
	Name, Hash string
	Path       nix.StorePath
	Size       string
	References []pageReference
	NARInfo    string
}

type pageReference struct{ Base, URL string }

// page answers with a page for people.
func (s *Server) page(res *response, r *http.Request) error {
	info, err := s.cache.info(r.Context())
	if err != nil {
		return err
	}
	data := pageData{URL: s.options.URL, StoreDir: info.StoreDir, Priority: info.Priority}
	if data.URL == "" {
		data.URL = ownURL(r)
	}
	for _, key := range s.options.PublicKeys {
		data.Keys = append(data.Keys, key.String())
	}
	if s.options.Listing {
		if data.Listing, err = s.listPaths(r.Context(), r.URL.Query()); err != nil {
			return err
		}
	}
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, data); err != nil {
		return err
	}
	return s.forPeople(res, r, "text/html; charset=utf-8", b.Bytes())
}

func (s *Server) style(res *response, r *http.Request) error {
	return s.forPeople(res, r, "text/css; charset=utf-8", []byte(pageStyle))
}

func (s *Server) forPeople(res *response, r *http.Request, contentType string, body []byte) error {
	h := res.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-cache")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	res.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	_, err := res.Write(body)
	return err
}

// ownURL is how the client calls this server.
func ownURL(r *http.Request) string {
	u := url.URL{Scheme: "http", Host: r.Host}
	if r.TLS != nil {
		u.Scheme = "https"
	}
	return u.String()
}

// listPaths finds the paths that a query asks for.
func (s *Server) listPaths(ctx context.Context, query url.Values) (*pageListing, error) {
	all, err := s.index.paths(ctx, s.cache)
	if err != nil {
		return nil, err
	}
	question := query.Get("q")
	question = strings.TrimSpace(question[:min(len(question), maxQuestion)])
	found := search(all, question)
	pages := max(1, (len(found)+pagePaths-1)/pagePaths)
	number, err := strconv.Atoi(query.Get("page"))
	if err != nil {
		number = 1
	}
	number = min(max(number, 1), pages)
	l := &pageListing{Question: question, Found: len(found), All: len(all)}
	first := (number - 1) * pagePaths
	found = found[first:min(first+pagePaths, len(found))]
	l.First, l.Last = first+1, first+len(found)
	if number > 1 {
		l.Back = pageURL(question, number-1)
	}
	if number < pages {
		l.Next = pageURL(question, number+1)
	}
	l.Paths, err = s.describe(ctx, found)
	return l, err
}

// search returns the paths in whose base name the question occurs.
func search(all []nix.StorePath, question string) []nix.StorePath {
	if question == "" {
		return all
	}
	question = strings.ToLower(question)
	var found []nix.StorePath
	for _, p := range all {
		if strings.Contains(strings.ToLower(p.Base()), question) {
			found = append(found, p)
		}
	}
	return found
}

func pageURL(question string, page int) string {
	query := url.Values{}
	if question != "" {
		query.Set("q", question)
	}
	if page > 1 {
		query.Set("page", strconv.Itoa(page))
	}
	return "/?" + query.Encode()
}

// describe leaves out what has gone meanwhile.
func (s *Server) describe(ctx context.Context, paths []nix.StorePath) ([]pagePath, error) {
	var list []pagePath
	for _, p := range paths {
		n, err := s.cache.lookup(ctx, p.HashPart())
		if errors.Is(err, nix.ErrNotValid) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		entry := pagePath{Name: p.Name(), Hash: p.HashPart(), Path: p, Size: sizeText(n.NARSize), NARInfo: "/" + NARInfoName(p)}
		for _, ref := range n.References {
			entry.References = append(entry.References, pageReference{ref.Base(), pageURL(ref.HashPart(), 1)})
		}
		list = append(list, entry)
	}
	return list, nil
}

// sizeText is a size for people.
func sizeText(n int64) string {
	value, unit := float64(n), "B"
	for _, next := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if value < 1000 {
			break
		}
		value, unit = value/1024, next
	}
	digits := 1
	if unit == "B" || value >= 100 {
		digits = 0
	}
	return strconv.FormatFloat(value, 'f', digits, 64) + " " + unit
}

// A list of all paths is used for the page for so long, and for so many times the time
// that it took to make.
const (
	indexAge   = 10 * time.Second
	indexShare = 20
)

// An index keeps the list of all paths for a while, by name.
type index struct {
	mu    sync.Mutex
	list  []nix.StorePath
	until time.Time
}

func (x *index) paths(ctx context.Context, cache served) ([]nix.StorePath, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	begun := time.Now()
	if begun.Before(x.until) {
		return x.list, nil
	}
	list, err := cache.list(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b nix.StorePath) int {
		return cmp.Or(strings.Compare(a.Name(), b.Name()), a.Compare(b))
	})
	x.list, x.until = list, time.Now().Add(max(indexAge, indexShare*time.Since(begun)))
	return list, nil
}

package substitute

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A ServedStore is a live store. Methods are called concurrently. Errors wrap
// nix.ErrNotValid where there is no such path.
type ServedStore interface {
	StoreDir() nix.StoreDir
	PathInfoFromHashPart(ctx context.Context, part string) (*nix.PathInfo, error)
	AllPaths(ctx context.Context) ([]nix.StorePath, error)
	// Version returns a value that differs from an earlier one if a path was added,
	// signed or deleted in between; ok is false where that cannot be told.
	Version() (version any, ok bool)
	// HoldUntil keeps a path from garbage collection until release is called.
	HoldUntil(ctx context.Context, p nix.StorePath) (release func() error, err error)
	// WriteNAR writes p's contents as they are, whether or not they are what the
	// store promises.
	WriteNAR(ctx context.Context, w io.Writer, p nix.StorePath) error
	// Realisation returns an error that wraps nix.ErrNoRealisation where none is known.
	Realisation(ctx context.Context, id nix.DrvOutput) (*nix.Realisation, error)
}

// StoreOptions say how a live store is served.
type StoreOptions struct {
	Priority int    // among a client's caches
	Sign     Signer // signs what leaves the store
	Zstd     bool   // offer it as a content coding, as far as there are processors
}

// NewStoreServer returns a Server of a live store: its NARs are made when they are
// asked for.
func NewStoreServer(store ServedStore, o StoreOptions, s ServerOptions) *Server {
	cache := &storeCache{store: store, options: o}
	if o.Zstd {
		cache.encoders = newEncoders()
	}
	return newServer(cache, s)
}

type storeCache struct {
	store    ServedStore
	options  StoreOptions
	encoders encoders // nil: none
	narInfos textCache
	known    verdicts
}

// For how long answers may be kept. Signatures may come later, and paths go.
const (
	keepInfo    = "max-age=3600"
	keepForever = "max-age=31536000, immutable"
)

// info implements served.
func (c *storeCache) info(ctx context.Context) (CacheInfo, error) {
	info := CacheInfo{StoreDir: c.store.StoreDir(), WantMassQuery: true, Priority: c.options.Priority}
	_, err := c.store.PathInfoFromHashPart(ctx, strings.Repeat("0", hashPartLen))
	if errors.Is(err, nix.ErrNotValid) {
		err = nil
	}
	return info, err
}

// list implements served.
func (c *storeCache) list(ctx context.Context) ([]nix.StorePath, error) { return c.store.AllPaths(ctx) }

// lookup implements served.
func (c *storeCache) lookup(ctx context.Context, part string) (*NARInfo, error) {
	info, err := c.store.PathInfoFromHashPart(ctx, part)
	if err != nil {
		return nil, err
	}
	n := &NARInfo{PathInfo: *info, Compression: None, FileHash: info.NARHash, FileSize: info.NARSize}
	n.URL = "nar/" + part + "-" + info.NARHash.Nix32() + ".nar"
	n.Signatures, err = c.options.Sign.Sign(info)
	return n, err
}

// serve implements served.
func (c *storeCache) serve(s *Server, res *response, r *http.Request, name string) error {
	if name == CacheInfoName {
		info, err := c.info(r.Context())
		if err != nil {
			return err
		}
		return newText(info.Text()).answer(res, r, "text/x-nix-cache-info")
	}
	if id, ok := parseRealisationName(name); ok {
		return c.realisation(res, r, id)
	}
	hash := ""
	if r.URL.RawQuery != "" {
		hash = r.URL.Query().Get("hash")
	}
	t, ok := parseStoreFile(name, hash)
	if !ok {
		return fs.ErrNotExist
	}
	if t.kind == narInfoFile {
		return c.narInfo(res, r, t.part)
	}
	n, err := c.lookup(r.Context(), t.part)
	switch {
	case err != nil:
		return err
	case t.kind == listingFile:
		return c.listing(s, res, r, n)
	case t.narHash != n.NARHash.Nix32():
		return fmt.Errorf("%s is no NAR of %s: %w", name, n.Path, fs.ErrNotExist)
	}
	return c.nar(s, res, r, n)
}

// narInfo answers with a narinfo, and keeps it for as long as nothing changes.
func (c *storeCache) narInfo(res *response, r *http.Request, part string) error {
	version, known := c.store.Version()
	t, found := c.narInfos.get(part, version)
	if !known || !found {
		n, err := c.lookup(r.Context(), part)
		if err != nil {
			return err
		}
		t = newText(n.Text())
		if known {
			c.narInfos.put(part, t, version)
		}
	}
	return t.answer(res, r, "text/x-nix-narinfo")
}

// listing answers with what is in a path. The NAR is read for it: only there do
// contents have offsets.
func (c *storeCache) listing(s *Server, res *response, r *http.Request, n *NARInfo) error {
	h, etag := res.Header(), `"ls-`+n.NARHash.Nix32()+`"`
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", keepInfo)
	h.Set("ETag", etag)
	if notModified(r, etag) {
		res.WriteHeader(http.StatusNotModified)
		return nil
	}
	if r.Method == http.MethodHead {
		res.WriteHeader(http.StatusOK)
		return nil
	}
	leave, err := s.transfer(r.Context())
	if err != nil {
		return err
	}
	defer leave()
	return c.held(r.Context(), n.Path, func(ctx context.Context) error {
		return c.writeListing(ctx, res, n.Path)
	})
}

func (c *storeCache) writeListing(ctx context.Context, w io.Writer, p nix.StorePath) error {
	in, out := io.Pipe()
	var dumped error
	done := make(chan struct{})
	go func() {
		defer close(done)
		dumped = c.store.WriteNAR(ctx, out, p)
		out.CloseWithError(dumped)
	}()
	err := WriteListing(w, in)
	in.CloseWithError(io.ErrClosedPipe)
	<-done
	return errors.Join(err, dumped)
}

// held calls fn while p is kept from garbage collection.
func (c *storeCache) held(ctx context.Context, p nix.StorePath, fn func(context.Context) error) (err error) {
	release, err := c.store.HoldUntil(ctx, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	return fn(ctx)
}

// nar answers with a path's contents, or a part of them.
func (c *storeCache) nar(s *Server, res *response, r *http.Request, n *NARInfo) error {
	h, etag := res.Header(), `"`+n.NARHash.Nix32()+`"`
	h.Set("Content-Type", "application/x-nix-nar")
	h.Set("Cache-Control", keepForever)
	if c.encoders != nil {
		h.Set("Vary", "Accept-Encoding")
	}
	if notModified(r, etag) {
		h.Set("ETag", etag)
		res.WriteHeader(http.StatusNotModified)
		return nil
	}
	part, ok := wantedRange(r, etag, n.NARSize)
	if !ok {
		h.Set("Content-Range", fmt.Sprintf("bytes */%d", n.NARSize))
		plain(res, http.StatusRequestedRangeNotSatisfiable, "there is no such part of it")
		return nil
	}
	plan := body{store: c.store, known: &c.known, info: &n.PathInfo, part: byteRange{0, n.NARSize}, status: http.StatusOK, etag: etag}
	if part != nil {
		plan.part, plan.status = *part, http.StatusPartialContent
	}
	if r.Method == http.MethodHead {
		plan.header(res)
		return nil
	}
	leave, err := s.transfer(r.Context())
	if err != nil {
		return err
	}
	defer leave()
	return c.held(r.Context(), n.Path, func(ctx context.Context) error {
		if part == nil && accepts(r, "zstd") {
			if e := c.encoders.take(); e != nil {
				defer c.encoders.put(e)
				return plan.encoded(ctx, res, e)
			}
		}
		return plan.identity(ctx, res, !s.crowded())
	})
}

// What a live store has for each path.
const (
	narInfoFile = iota
	listingFile
	narFile
)

// hashPartLen is the length of a store path's hash part, and of a NAR's SHA-256
// hash in nix32.
const (
	hashPartLen = 32
	narHashLen  = 52
)

// A storeFile is what a file's name in a live store's cache asks for.
type storeFile struct {
	kind    int
	part    string // the hash part of a store path
	narHash string // of a narFile, in nix32
}

// parseStoreFile takes HASH.narinfo, HASH.ls, and a NAR's name in the two forms
// that are in use: nar/HASH-NARHASH.nar, and nar/NARHASH.nar with the parameter hash.
func parseStoreFile(name, hash string) (storeFile, bool) {
	dir, base, _ := strings.Cut(name, "/")
	if base == "" {
		part, suffix, _ := strings.Cut(name, ".")
		kind := narInfoFile
		if suffix == "ls" {
			kind = listingFile
		}
		return storeFile{kind: kind, part: part}, (suffix == "narinfo" || suffix == "ls") && isNix32(part, hashPartLen)
	}
	words, isNAR := strings.CutSuffix(base, ".nar")
	part, narHash, both := strings.Cut(words, "-")
	if !both {
		part, narHash = hash, words
	}
	ok := dir == "nar" && isNAR && isNix32(part, hashPartLen) && isNix32(narHash, narHashLen)
	return storeFile{kind: narFile, part: part, narHash: narHash}, ok
}

func isNix32(s string, length int) bool {
	_, err := nix.DecodeNix32(s)
	return len(s) == length && err == nil
}

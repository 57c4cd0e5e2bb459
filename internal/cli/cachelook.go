package cli

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/urfave/cli/v2"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/progress"
	"github.com/copy-closure/copy-closure/internal/show"
	"github.com/copy-closure/copy-closure/internal/ui"
	"github.com/copy-closure/copy-closure/substitute"
)

// A cacheRun is one of the commands about a cache under way.
type cacheRun struct {
	*program
	c     *cli.Context
	cache *substitute.Cache
	paths []nix.StorePath
}

// cacheLookCommands are about a cache that somebody has made.
func (p *program) cacheLookCommands() []*cli.Command {
	sub := func(name, args, usage string, flags []cli.Flag, run func(*cacheRun) error) *cli.Command {
		return &cli.Command{
			Name: name, ArgsUsage: args, Usage: usage, Flags: joinFlags(outputFlags, flags),
			Action: func(c *cli.Context) error { return p.runCache(c, name, args, run) },
		}
	}
	jsonFlag := &cli.BoolFlag{Name: "json", Usage: "print JSON"}
	return []*cli.Command{
		sub("info", "URL", "print what a cache says of itself, and what it has", []cli.Flag{jsonFlag}, cacheInfo),
		sub("ls", "URL [PATH…]", "list the paths of a cache, or those that PATHs refer to", []cli.Flag{jsonFlag}, cacheList),
		sub("verify", "URL [PATH…]", "check that a cache is complete, or what PATHs refer to", []cli.Flag{
			&cli.BoolFlag{Name: "check-contents", Usage: "read all NARs and hold them against their hashes"},
			&cli.IntFlag{Name: "sigs-needed", Usage: "`N` trusted keys must have signed each path (default: none)"},
			trustedKeyFlag,
		}, cacheVerify),
		sub("delete", "URL [PATH…]", "delete paths that no other path in a cache refers to, and what a killed push or deletion has left", nil, cacheDelete),
	}
}

func (p *program) runCache(c *cli.Context, name, args string, run func(*cacheRun) error) error {
	if err := p.setOutput(c); err != nil {
		return err
	}
	if c.NArg() == 0 {
		return usagef("say %s cache %s %s", p.name, name, args)
	}
	files, err := p.openCache(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	r := &cacheRun{program: p, c: c, cache: &substitute.Cache{Files: files, StoreDir: storeDir()}}
	for _, arg := range c.Args().Tail() {
		path, err := storeDir().Parse(arg)
		if err != nil {
			return usagef("%v", err)
		}
		r.paths = append(r.paths, path)
	}
	err = run(r)
	if errors.Is(err, errArguments) {
		return usagef("say %s cache %s %s", p.name, name, args)
	}
	if err != nil {
		return fmt.Errorf("cache %s: %w", files, err)
	}
	return nil
}

// inventory reads what the cache has, or what the arguments refer to there.
func (r *cacheRun) inventory() (*substitute.Inventory, error) {
	if len(r.paths) == 0 {
		return r.cache.Inventory(r.c.Context)
	}
	v, err := r.cache.InventoryOf(r.c.Context, r.paths)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &notInSourceError{err}
	}
	return v, err
}

// A cacheDetail is what cache info prints.
type cacheDetail struct {
	URL           string       `json:"url"`
	StoreDir      nix.StoreDir `json:"storeDir"`
	WantMassQuery bool         `json:"wantMassQuery"`
	Priority      int          `json:"priority"`
	Paths         *int         `json:"paths,omitempty"` // absent where the cache cannot be listed
	FileBytes     int64        `json:"fileBytes,omitempty"`
	NARBytes      int64        `json:"narBytes,omitempty"`
}

func cacheInfo(r *cacheRun) error {
	if len(r.paths) > 0 {
		return errArguments
	}
	info, err := r.cache.Info(r.c.Context)
	if err != nil {
		return err
	}
	d := cacheDetail{URL: r.cache.Files.String(), StoreDir: info.StoreDir, WantMassQuery: info.WantMassQuery, Priority: info.Priority}
	v, err := r.inventory()
	switch {
	case errors.Is(err, substitute.ErrNoListing):
	case err != nil:
		return err
	default:
		n := len(v.Infos)
		d.Paths = &n
		for _, info := range v.Infos {
			d.FileBytes += info.FileSize
			d.NARBytes += info.NARSize
		}
	}
	if r.c.Bool("json") {
		return printJSON(r.stdout, d)
	}
	fmt.Fprintf(r.stdout, "%s\n  store directory: %s\n  may be asked about many paths: %v\n  priority: %d\n", d.URL, d.StoreDir, d.WantMassQuery, d.Priority)
	if d.Paths != nil {
		fmt.Fprintf(r.stdout, "  %s, %s (%s uncompressed)\n", ui.Paths(*d.Paths), ui.Bytes(d.FileBytes), ui.Bytes(d.NARBytes))
	}
	return nil
}

// A cachedPath is what cache ls prints of a path.
type cachedPath struct {
	pathDetail
	URL         string                 `json:"url"`
	Compression substitute.Compression `json:"compression"`
	FileHash    string                 `json:"fileHash,omitempty"`
	FileSize    int64                  `json:"fileSize,omitempty"`
}

func cacheList(r *cacheRun) error {
	v, err := r.inventory()
	if err != nil {
		return err
	}
	infos := v.Sorted()
	for _, err := range v.Damaged {
		r.log.Warn("passed over", "reason", err)
	}
	if r.c.Bool("json") {
		list := make([]cachedPath, len(infos))
		for i, n := range infos {
			list[i] = cachedPath{detail(&n.PathInfo), n.URL, n.Compression, n.FileHash.String(), n.FileSize}
		}
		return printJSON(r.stdout, list)
	}
	out, flush := r.stdout.Buffered()
	for _, n := range infos {
		fmt.Fprintln(out, n.Path)
	}
	return flush()
}

func cacheVerify(r *cacheRun) error {
	keys, err := trustedKeys(r.c)
	if err != nil {
		return err
	}
	v, err := r.inventory()
	if err != nil {
		return err
	}
	damaged, untrusted, unread := 0, 0, 0
	for _, n := range v.Sorted() {
		if err := checkSigned(&n.PathInfo, keys, r.c.Int("sigs-needed")); err != nil {
			untrusted++
			fmt.Fprintln(r.stdout, show.Line(err.Error()))
		}
	}
	meter := new(progress.Meter)
	stop := r.screen.Show(meter)
	err = v.Verify(r.c.Context, r.c.Bool("check-contents"), meter, func(err error) {
		if errors.Is(err, nix.ErrDamaged) {
			damaged++
		} else {
			unread++
		}
		fmt.Fprintln(r.stdout, show.Line(err.Error()))
	})
	stop()
	if err == nil && len(r.paths) == 0 && len(v.Damaged) == 0 {
		err = r.tellStrays(v)
	}
	if err != nil {
		return err
	}
	checked := len(v.Infos) + len(v.Damaged)
	if unread > 0 {
		err = fmt.Errorf("%s of %s could not be checked", ui.Count(unread), ui.Paths(checked))
	}
	if err == nil || damaged+untrusted > 0 {
		err = errors.Join(err, r.verdict(checked, damaged, untrusted))
	}
	return err
}

// tellStrays tells of what belongs to no path, which does no harm but takes room.
func (r *cacheRun) tellStrays(v *substitute.Inventory) error {
	strays, err := v.Strays(r.c.Context)
	if err != nil || len(strays) == 0 {
		return err
	}
	var size int64
	for _, file := range strays {
		size += file.Size
	}
	fmt.Fprintf(r.screen, "%s of files that belong to no path, from a killed push or deletion; cache delete removes them\n", ui.Bytes(size))
	return nil
}

func cacheDelete(r *cacheRun) error {
	v, err := r.cache.Inventory(r.c.Context)
	if err != nil {
		return err
	}
	freed, err := v.Delete(r.c.Context, r.paths)
	if errors.Is(err, nix.ErrNotValid) {
		return &notInSourceError{err}
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(r.screen, "deleted %s, %s freed\n", ui.Paths(len(r.paths)), ui.Bytes(freed))
	return nil
}

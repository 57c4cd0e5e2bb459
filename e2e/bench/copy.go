package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/copy-closure/copy-closure/e2e/harness"
)

// A copyCase has several tools copy the same closure, in turns.
type copyCase struct {
	title   string
	source  recipe
	tools   []tool
	rtt     time.Duration
	pull    bool
	present bool    // the destination has everything already
	ours    bool    // the far end of ours is ours
	rate    float64 // bytes a second in each direction; 0: unlimited
	before  *recipe // what the destination has of an earlier version; nil: nothing
	kills   int     // how often every connection is reset on the way
	daemon  bool    // through ssh-ng
	forced  bool    // to nix-daemon: there is no other program to be had

	// What is to be reached, one of: limit times the tool called against,
	// an absolute time, or the memory that each of our processes may use.
	against string
	limit   float64
	atMost  time.Duration
	memory  bool
	wire    int64   // bytes through the link, both ways
	patches float64 // the same, in units of what zstd --patch-from makes of the paths
}

// A tool copies closures.
type tool struct {
	name string
	line func(trial) ([]string, error)
	// env are variables (K=V) for the command.
	env func(trial) []string
	// brief tools are too slow for the whole closure: they copy a small part
	// of it once, and the rest is extrapolated.
	brief bool
	ours  bool
}

// A trial is one copy by one tool.
type trial struct {
	*copyCase
	lab      *lab
	closure  *harness.Closure
	source   *harness.Store
	here     *harness.Store
	far      *far
	farStore *harness.Store
}

var us = tool{name: "copy-closure", ours: true, line: func(t trial) ([]string, error) {
	host := harness.FarHost
	if t.daemon {
		host = "ssh-ng://" + host
	}
	args := []string{"-q", "--store", t.here.Root, "--to", host}
	if t.pull {
		args = []string{"-q", "--store", t.here.Root, "--no-check-sigs", "--from", host}
	}
	if t.wire > 0 || t.patches > 0 { // bytes are counted, on whatever link
		args = append(args, "--delta", "always")
	}
	return t.lab.measured(append(args, t.closure.Roots...)...)
}, env: sshEnv}

var nixCopyClosure = tool{name: "nix-copy-closure", line: func(t trial) ([]string, error) {
	return append([]string{"nix-copy-closure", t.direction(), harness.FarHost}, t.closure.Roots...), nil
}, env: nixEnv}

var (
	nixCopy   = nixCopyOver("ssh")
	nixCopyNG = nixCopyOver("ssh-ng")
)

func nixCopyOver(scheme string) tool {
	return tool{name: "nix copy, " + scheme, line: func(t trial) ([]string, error) {
		line := []string{"nix", "copy", "--no-check-sigs", t.direction(), scheme + "://" + harness.FarHost}
		return append(line, t.closure.Roots...), nil
	}, env: nixEnv}
}

// tarSSH, catSSH and cpA copy contents only: no database, no hashes. catSSH is
// what the link and the cipher can do and writes nothing.
var (
	tarSSH = tool{name: "tar over ssh", line: func(t trial) ([]string, error) {
		return t.pipeline(fmt.Sprintf("| ssh -F %s %s tar -C %s -xf -", t.far.config, harness.FarHost, t.destination()))
	}}
	catSSH = tool{name: "tar to ssh cat, AES-GCM", line: func(t trial) ([]string, error) {
		return t.pipeline(fmt.Sprintf("| ssh -F %s -c aes128-gcm@openssh.com %s 'cat >/dev/null'", t.far.config, harness.FarHost))
	}}
	cpA = tool{name: "cp -a", line: func(t trial) ([]string, error) {
		list, err := t.writeNames()
		return []string{"sh", "-c", fmt.Sprintf("cd %s && xargs -a %s cp -a -t %s",
			t.source.Physical(harness.StoreDir), list, t.destination())}, err
	}}
)

// brief returns the tool as one that copies a part.
func brief(t tool) tool {
	t.brief = true
	return t
}

func (t trial) direction() string {
	if t.pull {
		return "--from"
	}
	return "--to"
}

func (t trial) destination() string { return t.farStore.Physical(harness.StoreDir) }

// pipeline tars the closure into the rest of a shell command.
func (t trial) pipeline(rest string) ([]string, error) {
	list, err := t.writeNames()
	return []string{"sh", "-c", fmt.Sprintf("tar -C %s -cf - -T %s %s",
		t.source.Physical(harness.StoreDir), list, rest)}, err
}

func (t trial) writeNames() (string, error) {
	var names strings.Builder
	for _, o := range t.closure.Paths {
		names.WriteString(filepath.Base(o.Path) + "\n")
	}
	file := filepath.Join(t.far.dir, "names")
	return file, os.WriteFile(file, []byte(names.String()), 0o644)
}

func sshEnv(t trial) []string { return []string{"NIX_SSHOPTS=-F " + t.far.config} }

func nixEnv(t trial) []string { return append(t.here.Env(), sshEnv(t)...) }

// time runs the tool once.
func (tl tool) time(ctx context.Context, l *lab, t trial) (time.Duration, error) {
	t.lab = l
	line, err := tl.line(t)
	if err != nil {
		return 0, err
	}
	var env []string
	if tl.env != nil {
		env = tl.env(t)
	}
	return timed(ctx, line, env)
}

func (c copyCase) run(ctx context.Context, l *lab) ([]row, error) {
	src, err := l.source(ctx, c.source.name, c.source.fill)
	if err != nil {
		return nil, err
	}
	rows := make([]row, len(c.tools))
	for i, tl := range c.tools {
		rows[i] = row{name: c.title, tool: tl.name}
	}
	for n := range l.runs {
		for i, tl := range c.tools {
			switch {
			case !tl.brief:
				err = c.addRun(ctx, l, &rows[i], tl, src)
			case n == 0:
				err = c.addBrief(ctx, l, &rows[i], tl, src)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", tl.name, err)
			}
		}
	}
	if c.patches > 0 {
		if c.wire, err = c.patchLimit(ctx, l, src); err != nil {
			return nil, err
		}
	}
	c.judge(rows)
	return rows, nil
}

func (c copyCase) addRun(ctx context.Context, l *lab, r *row, tl tool, src *source) error {
	d, err := c.copyOnce(ctx, l, tl, src, src.Closure)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "  %s: %s\n", tl.name, seconds(d.time))
	r.times, r.wires = append(r.times, d.time), append(r.wires, d.wire)
	if !tl.ours {
		return nil
	}
	near, err := readPeak(l.nearPeak())
	if err != nil {
		return err
	}
	there, err := readPeak(l.farPeak())
	r.near, r.far = max(r.near, near), max(r.far, there)
	return err
}

// addBrief has the tool copy two parts of the closure and assumes that each
// path takes as long as those between the two.
func (c copyCase) addBrief(ctx context.Context, l *lab, r *row, tl tool, src *source) error {
	all := len(src.Paths)
	more := min(500, all)
	if l.quick {
		more = min(50, all)
	}
	few := more / 10
	short, err := c.copyOnce(ctx, l, tl, src, src.Prefix(few))
	if err != nil {
		return err
	}
	long, err := c.copyOnce(ctx, l, tl, src, src.Prefix(more))
	if err != nil {
		return err
	}
	each := (long.time - short.time) / time.Duration(more-few)
	r.times = []time.Duration{long.time + each*time.Duration(all-more)}
	r.extrapolation = fmt.Sprintf("%d paths: %s", more, seconds(long.time))
	fmt.Fprintf(os.Stderr, "  %s, %s\n", tl.name, r.extrapolation)
	return nil
}

// A cost is what one copy took.
type cost struct {
	time time.Duration
	wire int64 // bytes through the link, both ways; 0 without a link
}

// copyOnce copies to a fresh store on a fresh file system.
func (c copyCase) copyOnce(ctx context.Context, l *lab, tl tool, src *source, part *harness.Closure) (cost, error) {
	dir, discard, err := l.fresh(ctx)
	if err != nil {
		return cost{}, err
	}
	defer discard()
	t := trial{copyCase: &c, closure: part, source: src.store}
	empty, err := harness.NewStore(ctx, filepath.Join(dir, "store"))
	if err != nil {
		return cost{}, err
	}
	if err := c.prepare(ctx, empty); err != nil {
		return cost{}, err
	}
	t.here, t.farStore = src.store, empty
	if c.pull {
		t.here, t.farStore = empty, src.store
	}
	if t.far, err = l.startFar(t.farStore, c.link(), c.server(tl)); err != nil {
		return cost{}, err
	}
	defer t.far.close()
	if c.kills > 0 {
		defer t.far.killAlong(c.kills, part.NarSize())()
	}
	took, err := tl.time(ctx, l, t)
	return cost{took, t.far.wire()}, err
}

// prepare puts into the destination what it has before the copy.
func (c copyCase) prepare(ctx context.Context, s *harness.Store) (err error) {
	switch {
	case c.present:
		_, err = c.source.fill(ctx, s)
	case c.before != nil:
		_, err = c.before.fill(ctx, s)
	}
	return err
}

// server is what answers at the far end.
func (c copyCase) server(tl tool) server {
	switch {
	case c.forced:
		return serverForced
	case c.ours && tl.ours:
		return serverOurs
	}
	return serverNix
}

// link is what lies between the two ends, nil for nothing.
func (c copyCase) link() *harness.Link {
	if c.rtt == 0 && c.rate == 0 && c.wire == 0 && c.patches == 0 {
		return nil
	}
	return &harness.Link{Delay: c.rtt / 2, Rate: c.rate}
}

// judge fills in ratios and verdicts; our row is the first.
func (c copyCase) judge(rows []row) {
	ours := &rows[0]
	median := harness.Median(ours.times)
	switch {
	case c.memory:
		ours.threshold = fmt.Sprintf("≤ %d MiB each", memoryLimit)
		ours.verdict = verdict(max(ours.near, ours.far), memoryLimit)
		if ours.near == 0 || ours.far == 0 {
			ours.verdict = "**not measured**"
		}
	case c.wire > 0:
		ours.setWire("≤ "+c.wireThreshold(), c.wire)
	case c.atMost > 0:
		ours.threshold = "≤ " + seconds(c.atMost)
		ours.verdict = verdict(float64(median), float64(c.atMost))
	default:
		ours.threshold = fmt.Sprintf("≤ %.2f × %s", c.limit, c.against)
	}
	for _, r := range rows {
		if r.tool == c.against {
			ours.verdict = verdict(float64(median)/float64(harness.Median(r.times)), c.limit)
			setRatios(rows, harness.Median(r.times), c.against)
		}
	}
}

func setRatios(rows []row, base time.Duration, against string) {
	for i := range rows {
		rows[i].ratio = fmt.Sprintf("%.2f ×", float64(harness.Median(rows[i].times))/float64(base))
		if rows[i].tool == against {
			rows[i].ratio = "="
		}
	}
}

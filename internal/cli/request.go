package cli

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
)

// A copyRequest is the command line of a copy, understood.
type copyRequest struct {
	pull        bool
	host        *hostURI
	args        []string // paths as given
	store       string
	terms       closure.Terms
	outputs     bool // of derivations, too
	checkSigs   bool
	signWith    []nix.SecretKey
	sessions    int // 0: as the link needs
	connections int // over which the sessions are spread
	limit       int // bytes a second; 0: none
	ssh         string
	compress    string
	delta       string // auto, always or never
	gzip        bool
	bootstrap   bootstrapMode
	become      become
	sudo        bool
	askSudo     bool // for its password, without trying first
	ignoreSpace bool
	atomic      bool // all paths become valid together
	roots       rootRequest
	json        bool
	html        string // file for the page of a plan
	thorough    bool   // the dry run may take some round trips more
	quiet       bool
	retries     int // after lost connections
	caches      cacheRequest
	prefer      closure.Preference
}

// copyRequest reads the command line. Under the name nix-copy-closure pushing is
// the default and signatures are not asked for, as in the original.
func (p *program) copyRequest(c *cli.Context, compatible bool) (*copyRequest, error) {
	r := &copyRequest{
		pull:        c.Bool("from"),
		store:       c.String("store"),
		terms:       closure.Terms{DryRun: c.Bool("dry-run"), Substitute: c.Bool("use-substitutes")},
		outputs:     c.Bool("include-outputs"),
		checkSigs:   !c.Bool("no-check-sigs") && !compatible,
		sessions:    c.Int("sessions"),
		connections: c.Int("connections"),
		ssh:         c.String("ssh"),
		bootstrap:   bootstrapMode(c.String("bootstrap")),
		become:      become{command: c.String("become-command")},
		sudo:        c.Bool("sudo") || c.Bool("ask-sudo-password"),
		ignoreSpace: c.Bool("ignore-space"),
		atomic:      c.Bool("atomic"),
		askSudo:     c.Bool("ask-sudo-password"),
		roots:       rootRequest{links: c.StringSlice("add-root"), profile: c.String("profile")},
		json:        c.Bool("json"),
		quiet:       c.Bool("quiet"),
		retries:     c.Int("retries"),
	}
	if err := p.checkDirection(c, compatible); err != nil {
		return nil, err
	}
	args := c.Args().Slice()
	if len(args) == 0 {
		return nil, usagef("say which host: %s %s HOST PATH…", p.name, direction(r.pull))
	}
	var err error
	if r.host, err = parseHost(args[0]); err != nil {
		return nil, usagef("%v", err)
	}
	if r.args, err = p.pathArguments(c, args[1:]); err != nil {
		return nil, err
	}
	if len(r.args) == 0 && c.Command.Name != "check" {
		return nil, usagef("say which paths to copy: %s %s %s PATH…", p.name, direction(r.pull), args[0])
	}
	if r.pull && c.IsSet("sign-with") {
		return nil, usagef("--sign-with is for a push; what was pulled is signed with %s sign", p.name)
	}
	if r.signWith, err = readSecretKeys(c, "sign-with"); err != nil {
		return nil, err
	}
	if err := r.readLink(c); err != nil {
		return nil, err
	}
	if err := r.readCaches(c); err != nil {
		return nil, err
	}
	if r.atomic && !r.pull && r.terms.Substitute {
		return nil, usagef("--atomic and --use-substitutes exclude each other in a push: what the destination takes from its caches is valid at once")
	}
	p.warnIrrelevant(c)
	return r, r.roots.check(len(r.args))
}

func direction(pull bool) string {
	if pull {
		return "--from"
	}
	return "--to"
}

// checkDirection wants exactly one of --to and --from.
func (p *program) checkDirection(c *cli.Context, compatible bool) error {
	to, from := c.Bool("to"), c.Bool("from")
	switch {
	case to && from:
		return usagef("--to and --from exclude each other: one end of a copy is this machine")
	case to || from || compatible:
		return nil
	case c.NArg() == 0:
		return usagef("say what to do: %s --to HOST PATH… or %s --from HOST PATH…; --help tells more", p.name, p.name)
	}
	return usagef("%q is no command; to copy, say the direction: %s --to HOST PATH… or %s --from HOST PATH…", c.Args().First(), p.name, p.name)
}

// maxStdin bounds the list of paths that is read from standard input.
const maxStdin = 1 << 30

// pathArguments joins the paths of the command line with those of --stdin.
func (p *program) pathArguments(c *cli.Context, args []string) ([]string, error) {
	if !c.Bool("stdin") {
		return args, nil
	}
	text, err := io.ReadAll(io.LimitReader(p.stdin, maxStdin))
	if err != nil {
		return nil, fmt.Errorf("read paths from standard input: %w", err)
	}
	separator := []byte{'\n'}
	if bytes.IndexByte(text, 0) >= 0 {
		separator = []byte{0}
	}
	for line := range bytes.SplitSeq(text, separator) {
		if word := strings.TrimSpace(string(line)); word != "" {
			args = append(args, word)
		}
	}
	return args, nil
}

// readLink reads the options that are about the connection.
func (r *copyRequest) readLink(c *cli.Context) error {
	switch r.compress = c.String("compress"); r.compress {
	case "auto", "none":
	case "gzip":
		r.gzip = true
	default:
		return usagef("--compress is auto, none or gzip, not %q", r.compress)
	}
	switch r.delta = c.String("delta"); r.delta {
	case "auto", "always", "never":
	default:
		return usagef("--delta is auto, always or never, not %q", r.delta)
	}
	r.gzip = r.gzip || r.host.compress || c.Bool("gzip") || c.Bool("bzip2") || c.Bool("xz")
	if err := r.checkLogin(); err != nil {
		return err
	}
	switch r.bootstrap {
	case bootstrapAsk, bootstrapAuto, bootstrapAlways, bootstrapNever:
	default:
		return usagef("--bootstrap is ask, auto, always or never, not %q", r.bootstrap)
	}
	if r.retries < 0 {
		return usagef("--retries is a number, 0 for none")
	}
	const most = 64
	if r.sessions < 0 || r.sessions > most {
		return usagef("--sessions is a number from 1 to %d", most)
	}
	if r.connections < 1 || r.connections > mostConnections {
		return usagef("--connections is a number from 1 to %d", mostConnections)
	}
	if r.sessions != 0 && r.sessions < r.connections {
		return usagef("--sessions %d cannot be spread over %d connections", r.sessions, r.connections)
	}
	if text := c.String("bwlimit"); text != "" {
		var err error
		if r.limit, err = parseRate(text); err != nil {
			return err
		}
	}
	return nil
}

// checkLogin checks the options that say how to log in, and as whom.
func (r *copyRequest) checkLogin() error {
	switch r.ssh {
	case "auto", "builtin", "openssh":
	default:
		return usagef("--ssh is auto, builtin or openssh, not %q", r.ssh)
	}
	switch {
	case r.sudo && r.become.command != "":
		return usagef("--sudo and --become-command exclude each other")
	case r.sudo:
		r.become.command = sudoCommand
	}
	return nil
}

// readCaches reads the options that are about caches. Naming one means using it.
func (r *copyRequest) readCaches(c *cli.Context) error {
	r.caches = readCacheRequest(c)
	r.terms.Substitute = r.terms.Substitute || len(r.caches.further) > 0
	switch prefer := c.String("prefer"); prefer {
	case "fast":
	case "push", "substitute":
		r.prefer = closure.Preference(prefer)
	default:
		return usagef("--prefer is fast, push or substitute, not %q", prefer)
	}
	return nil
}

// parseRate reads bytes per second, with a binary unit or none.
func parseRate(text string) (int, error) {
	digits := strings.TrimRight(strings.ToUpper(text), "KMGIB")
	unit := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(text)[len(digits):], "B"), "I")
	shift, known := map[string]int{"": 0, "K": 10, "M": 20, "G": 30}[unit]
	n, err := strconv.ParseFloat(digits, 64)
	rate := n * float64(int64(1)<<shift)
	if err != nil || !known || rate < 1 || rate > 1<<40 {
		return 0, usagef("--bwlimit is a number of bytes a second such as 500K or 2M, not %q", text)
	}
	return int(rate), nil
}

// warnIrrelevant names the options of Nix that have no meaning here.
func (p *program) warnIrrelevant(c *cli.Context) {
	for _, o := range irrelevantOptions {
		if name := strings.Fields(o.names)[0]; c.IsSet(name) {
			p.log.Warn("--" + name + " has no meaning here: " + o.reason)
		}
	}
	for _, setting := range c.StringSlice("option") {
		name, _, _ := strings.Cut(setting, "=")
		p.log.Warn("--option " + name + " has no meaning here: set it in nix.conf")
	}
	for _, name := range []string{"bzip2", "xz"} {
		if c.Bool(name) {
			p.log.Warn("--" + name + " is taken as --gzip: ssh compresses with nothing else")
		}
	}
}

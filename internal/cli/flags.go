package cli

import (
	"strings"

	"github.com/urfave/cli/v2"
)

var storeFlag = &cli.StringFlag{Name: "store", Value: "auto",
	Usage: "the store at this end: auto, local, daemon, `URI` or /DIR"}

var stdinFlag = &cli.BoolFlag{Name: "stdin", Usage: "read further PATHs from standard input, by line or NUL"}

// logFlags are those of every command.
var logFlags = []cli.Flag{
	&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "show steps and round trips; twice: the protocol"},
	&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "errors only"},
}

// copyFlags are those of a copy.
func copyFlags() []cli.Flag {
	return append(append([]cli.Flag{
		&cli.BoolFlag{Name: "to", Usage: "push: copy PATHs to HOST"},
		&cli.BoolFlag{Name: "from", Usage: "pull: copy PATHs from HOST"},
		&cli.BoolFlag{Name: "use-substitutes", Aliases: []string{"s", "substitute-on-destination"}, Usage: "let the destination take from its caches what they have"},
		&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "print the plan and change nothing, anywhere"},
		&cli.BoolFlag{Name: "include-outputs", Usage: "copy the outputs of derivations as well"},
		&cli.BoolFlag{Name: "no-check-sigs", Usage: "pull paths that no trusted key has signed"},
		&cli.BoolFlag{Name: "ignore-space", Usage: "copy also what seems not to fit at the destination"},
		&cli.BoolFlag{Name: "atomic", Usage: "let all paths become valid together in the end, or none"},
		&cli.StringSliceFlag{Name: "sign-with", Usage: "sign what is pushed with the secret key in `FILE` (repeatable)"},
		stdinFlag,
		&cli.StringSliceFlag{Name: "add-root", Usage: "make `LINK` a garbage collector root for the PATH (one for each PATH)"},
		&cli.StringFlag{Name: "profile", Aliases: []string{"p"}, Usage: "make the PATH a new generation of `PROFILE`"},
		&cli.IntFlag{Name: "sessions", Usage: "`N` sessions side by side on the connection (default: as the link needs)"},
		&cli.IntFlag{Name: "connections", Value: 1, Usage: "spread the sessions over up to `N` connections; for those beyond the first nobody is asked anything"},
		&cli.IntFlag{Name: "retries", Value: defaultRetries, Usage: "go on `N` times after the connection was lost"},
		&cli.StringFlag{Name: "bwlimit", Usage: "send at most `RATE` bytes a second (500K, 2M)"},
		&cli.StringFlag{Name: "compress", Value: "auto", Usage: "`HOW` to compress: auto, none, or gzip (ssh -C)"},
		&cli.StringFlag{Name: "delta", Value: "auto", Usage: "`WHEN` to send only what differs from paths that are there: auto (on far links), always or never"},
		&cli.StringFlag{Name: "ssh", Value: "auto", Usage: "`WHICH` SSH client to use: auto, builtin or openssh"},
		&cli.BoolFlag{Name: "sudo", Usage: "write the store there as root, by sudo"},
		&cli.BoolFlag{Name: "ask-sudo-password", Usage: "--sudo, with the password asked for first"},
		&cli.StringFlag{Name: "become-command", Usage: "write the store there through `CMD` in place of sudo"},
		&cli.StringFlag{Name: "bootstrap", Value: "ask", Usage: "`WHEN` to upload copy-closure to a host that has neither it nor Nix: ask, auto, never, or always (where Nix is, too)"},
		&cli.StringFlag{Name: "progress", Value: "auto", Usage: "`HOW` to show progress: auto, bar, plain or none"},
		&cli.BoolFlag{Name: "version", Usage: "print the version"},
		&cli.BoolFlag{Name: "json", Usage: "print plan and result as one JSON object"},
		&cli.StringFlag{Name: "prefer", Value: "fast", Usage: "`WHICH` to take of paths that both have: fast, push or substitute"},
		storeFlag,
	}, cacheFlags()...), append(logFlags, compatibilityFlags()...)...)
}

// compatibilityFlags are options of nix-copy-closure and of Nix in general; the
// README's table says what becomes of each.
func compatibilityFlags() []cli.Flag {
	var flags []cli.Flag
	for _, name := range []string{"gzip", "bzip2", "xz"} {
		flags = append(flags, &cli.BoolFlag{Name: name, Hidden: true})
	}
	for _, o := range irrelevantOptions {
		words := strings.Fields(o.names)
		if o.value {
			flags = append(flags, &cli.StringFlag{Name: words[0], Aliases: words[1:], Hidden: true})
		} else {
			flags = append(flags, &cli.BoolFlag{Name: words[0], Aliases: words[1:], Hidden: true})
		}
	}
	return append(flags, &cli.StringSliceFlag{Name: "option", Hidden: true})
}

// irrelevantOptions of Nix mean nothing to a copy: they are accepted with a
// warning, so that scripts go on working.
var irrelevantOptions = []struct {
	names  string // without dashes
	value  bool   // the option takes one
	reason string
}{
	{"show-progress", false, "progress is shown anyway"},
	{"keep-going k", false, "nothing is built"},
	{"keep-failed K", false, "nothing is built"},
	{"fallback", false, "nothing is built"},
	{"no-build-output Q", false, "nothing is built"},
	{"print-build-logs L", false, "nothing is built"},
	{"no-build-hook", false, "nothing is built"},
	{"readonly-mode", false, "nothing is evaluated"},
	{"max-jobs j", true, "nothing is built"},
	{"cores", true, "nothing is built"},
	{"max-silent-time", true, "nothing is built"},
	{"timeout", true, "nothing is built"},
	{"builders", true, "nothing is built"},
	{"log-format", true, "see --progress"},
	{"I", true, "nothing is evaluated"},
}

package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// helpText is what --help prints; a test holds it against the flags and the README.
const helpText = `copy-closure copies Nix store paths with all they refer to, over SSH.

  copy-closure [options] --to HOST PATH…    push from this machine
  copy-closure [options] --from HOST PATH…  pull to this machine
  copy-closure plan [--html FILE] --to|--from HOST PATH…   what a copy would do
  copy-closure check --to HOST [PATH…]      what a copy would find there
  copy-closure fetch [--from-cache URL] PATH…   take from binary caches alone
  copy-closure demo [DIR…]                  the whole job on this machine alone

Other commands; --help behind each of them tells more:
  store      add, info, ls, closure, verify, delete, add-root, set-profile
  cache      push, serve, info, ls, verify, delete
  key        generate, public; sign, verify: local paths; channel publish
  profile    list, rollback; serve: the far end; completion bash|zsh|fish

HOST is [ssh://|ssh-ng://][user@]host[:port][?remote-program=…&remote-store=…]
PATH is a store path, a path inside one, or a link to one such as ./result

Copy:
  -n, --dry-run          print the plan and change nothing, anywhere
  -s, --use-substitutes  let the destination take from caches what they have
  --substituter URL      and from this one; --refresh: ask caches anew
  --prefer WHICH         where both have a path: fast, push or substitute
  --trusted-public-key K believe what this key has signed
  --include-outputs      outputs of derivations, too; --atomic: all, or nothing
  --no-check-sigs        pull paths that no trusted key has signed
  --ignore-space         copy what seems not to fit; --stdin: further PATHs
  --sign-with FILE       sign what is pushed with a secret key (repeatable)
  --store URI            the store at this end: auto, local, daemon, /DIR
  --add-root LINK        make LINK a root at the destination, one for each PATH
  -p, --profile PROFILE  make the PATH a new generation of PROFILE there
Connection:
  --ssh WHICH            auto, builtin or openssh; NIX_SSHOPTS is honoured
  --sudo                 root there; --ask-sudo-password; or --become-command
  --bootstrap WHEN       upload to a host without Nix: ask, auto, never, always
  --sessions N           side by side, over up to --connections N
  --bwlimit RATE         bytes a second (500K, 2M); --retries N (3)
  --compress HOW         auto, none, gzip (ssh -C); --delta auto|always|never
Output:
  -v, --verbose          show steps and round trips; twice: the protocol
  -q, --quiet; --json    errors only; print plan and result as one JSON object
  --progress HOW         auto, bar, plain or none; -h, --help; --version

Exit codes: 0 done, 1 failed, 2 usage, 3 not reached, 4 not trusted, 5 path not
valid in the source, 6 data damaged, 7 no room, 130 interrupted
`

// helpIndent is where the text about an option begins.
const helpIndent = 28

// commandHelp is what --help prints behind the words that name a command.
func commandHelp(words []string, c *cli.Command) string {
	var b strings.Builder
	name := strings.Join(words, " ")
	if len(c.Subcommands) > 0 {
		fmt.Fprintf(&b, "%s: %s\n\n", name, c.Usage)
		for _, sub := range c.Subcommands {
			helpItem(&b, strings.TrimSpace(sub.Name+" "+sub.ArgsUsage), sub.Usage)
		}
		b.WriteString("\n--help behind each of them tells more.\n")
		return b.String()
	}
	flags, further := ownFlags(c.Flags)
	fmt.Fprintf(&b, "%s\n\n", strings.TrimSpace(name+" [options] "+c.ArgsUsage))
	for _, line := range fold(c.Usage, screenColumns) {
		b.WriteString(line + "\n")
	}
	if len(flags) > 0 {
		b.WriteString("\n")
	}
	for _, f := range flags {
		helpItem(&b, flagNames(f), flagUsage(f))
	}
	if further {
		b.WriteString("\nand the options of a copy, as copy-closure --help lists them\n")
	}
	return b.String()
}

// helpItem writes a term and what it means, beside it where there is room.
func helpItem(b *strings.Builder, term, text string) {
	lines := fold(text+"\n", screenColumns-helpIndent)
	if width := len([]rune(term)); width+4 > helpIndent {
		fmt.Fprintf(b, "  %s\n", term)
	} else {
		fmt.Fprintf(b, "  %s%*s%s\n", term, helpIndent-2-width, "", lines[0])
		lines = lines[1:]
	}
	for _, line := range lines {
		fmt.Fprintf(b, "%*s%s\n", helpIndent, "", line)
	}
}

// ownFlags leaves out those of a copy, where a command takes them all, and says so.
func ownFlags(flags []cli.Flag) (own []cli.Flag, further bool) {
	of := func(name string) func(cli.Flag) bool {
		return func(f cli.Flag) bool { return f.Names()[0] == name }
	}
	further = slices.ContainsFunc(flags, of("include-outputs"))
	common := copyFlags()
	for _, f := range flags {
		visible := f.(cli.VisibleFlag).IsVisible()
		if visible && !(further && slices.ContainsFunc(common, of(f.Names()[0]))) {
			own = append(own, f)
		}
	}
	return own, further
}

// flagNames are "-s, --name VALUE".
func flagNames(f cli.Flag) string {
	text := "--" + f.Names()[0]
	for _, alias := range f.Names()[1:] {
		if len(alias) == 1 {
			text = "-" + alias + ", " + text
		}
	}
	doc := f.(cli.DocGenerationFlag)
	if !doc.TakesValue() {
		return text
	}
	_, rest, _ := strings.Cut(doc.GetUsage(), "`")
	value, _, ok := strings.Cut(rest, "`")
	if !ok {
		value = "VALUE"
	}
	return text + " " + value
}

// flagUsage is what an option does, and its default if the words do not have it.
func flagUsage(f cli.Flag) string {
	doc := f.(cli.DocGenerationFlag)
	text := strings.ReplaceAll(doc.GetUsage(), "`", "")
	value := strings.Trim(doc.GetDefaultText(), `"`)
	if doc.TakesValue() && value != "" && value != "0" && !strings.Contains(text, "default") {
		text += " (default: " + value + ")"
	}
	return text
}

package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// completionCommand prints what a shell needs to complete our command lines.
func (p *program) completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print completions for a shell",
		ArgsUsage: "bash|zsh|fish",
		Action: func(c *cli.Context) error {
			script, ok := completionScripts[c.Args().First()]
			if !ok || c.NArg() != 1 {
				return usagef("say for which shell: %s completion bash|zsh|fish", p.name)
			}
			_, err := fmt.Fprint(p.stdout, strings.NewReplacer(completionParts(p.app())...).Replace(script))
			return err
		},
	}
}

// completionParts are the words of the scripts: options and commands of the program,
// and for each command its words, options or further commands.
func completionParts(app *cli.App) []string {
	var bash, zsh, fish strings.Builder
	eachCommand(nil, app.Commands, func(words []string, c *cli.Command) {
		candidates := optionWords(c.Flags)
		for _, sub := range c.Subcommands {
			candidates = append(candidates, sub.Name)
		}
		name, list := strings.Join(words, " "), strings.Join(candidates, " ")
		fmt.Fprintf(&bash, "    \"%s \"*) words=%q ;;\n", name, list)
		fmt.Fprintf(&zsh, "    \"%s \"*) candidates=(%s) ;;\n", name, list)
		fish.WriteString(fishLines(words, c))
	})
	return []string{
		"@OPTIONS@", strings.Join(optionWords(app.Flags), " "),
		"@COMMANDS@", strings.Join(commandNames(app.Commands), " "),
		"@BASH@", bash.String(), "@ZSH@", zsh.String(), "@FISH@", fish.String(),
	}
}

// eachCommand calls do for each command, the innermost first, with the words that name it.
func eachCommand(words []string, commands []*cli.Command, do func(words []string, c *cli.Command)) {
	for _, c := range commands {
		words := append(slices.Clone(words), c.Name)
		eachCommand(words, c.Subcommands, do)
		do(words, c)
	}
}

func commandNames(commands []*cli.Command) []string {
	var names []string
	for _, c := range commands {
		names = append(names, c.Name)
	}
	return names
}

// optionWords are the visible options.
func optionWords(flags []cli.Flag) []string {
	var words []string
	for _, f := range flags {
		if f.(cli.VisibleFlag).IsVisible() {
			words = append(words, "--"+f.Names()[0])
		}
	}
	slices.Sort(words)
	return words
}

// fishLines complete one command where all of its words have been said.
func fishLines(words []string, c *cli.Command) string {
	var b strings.Builder
	said := "__fish_seen_subcommand_from " + strings.Join(words, "; and __fish_seen_subcommand_from ")
	if len(c.Subcommands) > 0 {
		names := strings.Join(commandNames(c.Subcommands), " ")
		fmt.Fprintf(&b, "complete -c copy-closure -n \"%s; and not __fish_seen_subcommand_from %s\" -fa \"%s\"\n", said, names, names)
	}
	for _, option := range optionWords(c.Flags) {
		fmt.Fprintf(&b, "complete -c copy-closure -n \"%s\" -l %s\n", said, option[2:])
	}
	return b.String()
}

// completionScripts complete options, commands, host names after --to and --from
// as ssh knows them, and files.
var completionScripts = map[string]string{
	"bash": `_copy_closure() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words="@OPTIONS@" skip='-*'
    case $prev in
    --to|--from)
        if declare -F _known_hosts_real >/dev/null; then _known_hosts_real -- "$cur"; fi
        return ;;
    esac
    if [ "$COMP_CWORD" -eq 1 ]; then words="$words @COMMANDS@"; fi
    case "${COMP_WORDS[*]:1:COMP_CWORD-1} " in
@BASH@    esac
    case $cur in
    -*) skip= ;;
    *) COMPREPLY=($(compgen -f -- "$cur")) ;;
    esac
    COMPREPLY+=($(compgen -X "$skip" -W "$words" -- "$cur"))
}
complete -o filenames -F _copy_closure copy-closure
`,
	"zsh": `#compdef copy-closure
_copy_closure() {
    local -a candidates
    case ${words[CURRENT-1]} in
    --to|--from) _hosts; return ;;
    esac
    candidates=(@OPTIONS@)
    if (( CURRENT == 2 )); then candidates+=(@COMMANDS@); fi
    case "${words[2,CURRENT-1]} " in
@ZSH@    esac
    if [[ ${words[CURRENT]} != -* ]]; then
        candidates=(${candidates:#-*})
        _files
    fi
    compadd -- $candidates
}
compdef _copy_closure copy-closure
`,
	"fish": `complete -c copy-closure -n __fish_use_subcommand -a "@COMMANDS@"
for option in (string split " " -- "@OPTIONS@")
    complete -c copy-closure -n "not __fish_seen_subcommand_from @COMMANDS@" -l (string replace -- "--" "" $option)
end
@FISH@complete -c copy-closure -n "string match -qr -- '--(to|from)' (commandline -opc)[-1]" -a "(__fish_print_hostnames)"
`,
}

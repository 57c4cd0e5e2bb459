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
			options, commands := completionWords(p.app())
			_, err := fmt.Fprint(p.stdout, strings.NewReplacer("@OPTIONS@", options, "@COMMANDS@", commands).Replace(script))
			return err
		},
	}
}

// completionWords lists the visible options and the commands.
func completionWords(app *cli.App) (options, commands string) {
	var words []string
	for _, f := range app.Flags {
		if v, ok := f.(cli.VisibleFlag); ok && v.IsVisible() {
			words = append(words, "--"+f.Names()[0])
		}
	}
	slices.Sort(words)
	var names []string
	for _, c := range app.Commands {
		names = append(names, c.Name)
	}
	return strings.Join(words, " "), strings.Join(names, " ")
}

// completionScripts complete options, commands, host names after --to and --from
// as ssh knows them, and files.
var completionScripts = map[string]string{
	"bash": `_copy_closure() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
    case $prev in
    --to|--from)
        if declare -F _known_hosts_real >/dev/null; then _known_hosts_real -- "$cur"; fi
        return ;;
    esac
    case $cur in
    -*) COMPREPLY=($(compgen -W "@OPTIONS@" -- "$cur")) ;;
    *)
        COMPREPLY=($(compgen -f -- "$cur"))
        if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY+=($(compgen -W "@COMMANDS@" -- "$cur")); fi ;;
    esac
}
complete -o filenames -F _copy_closure copy-closure
`,
	"zsh": `#compdef copy-closure
_copy_closure() {
    case ${words[CURRENT-1]} in
    --to|--from) _hosts; return ;;
    esac
    if [[ ${words[CURRENT]} == -* ]]; then
        compadd -- @OPTIONS@
        return
    fi
    if (( CURRENT == 2 )); then compadd -- @COMMANDS@; fi
    _files
}
compdef _copy_closure copy-closure
`,
	"fish": `complete -c copy-closure -n __fish_use_subcommand -a "@COMMANDS@"
for option in (string split " " -- "@OPTIONS@")
    complete -c copy-closure -l (string replace -- "--" "" $option)
end
complete -c copy-closure -n "string match -qr -- '--(to|from)' (commandline -opc)[-1]" -a "(__fish_print_hostnames)"
`,
}

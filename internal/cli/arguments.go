package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// A usageError is a command line that cannot be meant. Its text says what to type.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// arrange brings a command line into the order that the flag library needs:
// options before arguments. Options may stand anywhere; "--" ends them. It splits
// glued short options (-j4), and turns Nix's --option NAME VALUE into one word.
func arrange(args []string, flags []cli.Flag) ([]string, error) {
	kinds := flagKinds(flags)
	var options, rest []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		switch {
		case arg == "--":
			rest = append(rest, args[i+1:]...)
			i = len(args)
		case arg == "-" || !strings.HasPrefix(arg, "-"):
			rest = append(rest, arg)
		case arg == "--option":
			if i+2 >= len(args) {
				return nil, usagef("--option takes a name and a value")
			}
			options = append(options, "--option="+args[i+1]+"="+args[i+2])
			i += 2
		default:
			words, takesNext, err := splitOption(arg, kinds)
			if err != nil {
				return nil, err
			}
			options = append(options, words...)
			if !takesNext {
				continue
			}
			if i+1 == len(args) {
				return nil, usagef("%s takes a value", arg)
			}
			i++
			options[len(options)-1] += "=" + args[i]
		}
	}
	return append(append(options, "--"), rest...), nil
}

// flagKinds tells for each name of a flag whether it takes a value.
func flagKinds(flags []cli.Flag) map[string]bool {
	kinds := map[string]bool{"help": false, "h": false, "version": false}
	for _, f := range flags {
		valued, ok := f.(cli.DocGenerationFlag)
		for _, name := range f.Names() {
			kinds[name] = ok && valued.TakesValue()
		}
	}
	return kinds
}

// splitOption makes words of one option; the last of them lacks its value if
// takesNext is set.
func splitOption(arg string, kinds map[string]bool) (words []string, takesNext bool, err error) {
	name, _, glued := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	takesValue, known := kinds[name]
	switch {
	case known && strings.HasPrefix(arg, "--"), known && len(name) == 1, known && glued:
		return []string{arg}, takesValue && !glued, nil
	case strings.HasPrefix(arg, "--"):
		return nil, false, unknownOption(arg, kinds)
	}
	return splitShort(arg, kinds)
}

// splitShort takes -nv4 apart.
func splitShort(arg string, kinds map[string]bool) (words []string, takesNext bool, err error) {
	for i := 1; i < len(arg); i++ {
		takesValue, known := kinds[arg[i:i+1]]
		switch {
		case !known:
			return nil, false, unknownOption(arg, kinds)
		case takesValue && i+1 < len(arg):
			return append(words, "-"+arg[i:i+1]+"="+arg[i+1:]), false, nil
		}
		words = append(words, "-"+arg[i:i+1])
		takesNext = takesValue
	}
	return words, takesNext, nil
}

// unknownOption suggests the option that has most letters in common.
func unknownOption(arg string, kinds map[string]bool) error {
	name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	var near []string
	for known := range kinds {
		if len(known) > 1 && len(name) > 1 && (strings.HasPrefix(known, name) || distance(known, name) <= 2) {
			near = append(near, "--"+known)
		}
	}
	if len(near) == 0 {
		return usagef("there is no option %s; --help lists them", arg)
	}
	slices.Sort(near)
	return usagef("there is no option %s; did you mean %s?", arg, strings.Join(near, " or "))
}

// distance is the Levenshtein distance of two short words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

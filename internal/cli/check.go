package cli

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/copy-closure/copy-closure/internal/show"
)

// checkCommand tells in one screen what a copy would find.
func (p *program) checkCommand() *cli.Command {
	return &cli.Command{
		Name:      "check",
		ArgsUsage: "--to HOST [PATH…]",
		Usage:     "print what a copy with the same options would find at the host, and change nothing",
		Flags:     copyFlags(),
		Action: func(c *cli.Context) error {
			if err := p.setOutput(c); err != nil {
				return err
			}
			request, err := p.copyRequest(c, false)
			if err != nil {
				return err
			}
			if request.pull {
				return usagef("check looks at a destination: say --to HOST")
			}
			request.terms.DryRun = true
			return (&checkRun{copyRun: copyRun{program: p, copyRequest: request, started: time.Now()}}).run(c.Context)
		},
	}
}

// A checkRun collects findings.
type checkRun struct {
	copyRun
	findings []finding
	asking   sync.WaitGroup
}

// A finding is a line of the screen, or a member of "findings" with --json.
type finding struct {
	Subject string `json:"subject"`
	Text    string `json:"text"`
}

func (r *checkRun) find(subject, format string, args ...any) {
	r.findings = append(r.findings, finding{subject, show.Text(fmt.Sprintf(format, args...))})
}

// run looks as far as it gets, prints what it found, and returns what stopped it.
func (r *checkRun) run(ctx context.Context) error {
	err := r.look(ctx)
	if err != nil {
		what, remedy := splitError(err.Error())
		r.find("problem", "%s", what)
		if remedy != "" {
			r.find("remedy", "%s", remedy)
		}
	}
	if printErr := r.print(); printErr != nil {
		return printErr
	}
	if err != nil {
		return &delegatedError{code: exitCode(err)} // it is told
	}
	return nil
}

// splitError parts what happened from what to do, which stands on further lines, or
// behind the first semicolon.
func splitError(text string) (what, remedy string) {
	what, remedy, further := strings.Cut(text, "\n")
	if !further {
		what, remedy, _ = strings.Cut(text, "; ")
	}
	return what, remedy
}

func (r *checkRun) print() error {
	if r.json {
		return printJSON(r.stdout, map[string]any{"host": r.host.name, "findings": r.findings})
	}
	for _, f := range r.findings {
		lines := fold(f.Text, screenColumns-checkIndent)
		fmt.Fprintf(r.stdout, "%-*s%s\n", checkIndent, f.Subject, lines[0])
		for _, line := range lines[1:] {
			fmt.Fprintf(r.stdout, "%*s%s\n", checkIndent, "", line)
		}
	}
	return nil
}

const (
	screenColumns = 79
	checkIndent   = 10
)

// fold breaks text between words, where it can, into lines of no more than columns.
// It keeps lines that are short enough, and indents what it breaks as it was.
func fold(text string, columns int) (lines []string) {
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		indent := line[:len(line)-len(strings.TrimLeft(line, " "))]
		if len([]rune(line)) <= columns {
			lines = append(lines, line)
			continue
		}
		for _, part := range foldLine(line, columns-len(indent)) {
			lines = append(lines, indent+part)
		}
	}
	return lines
}

func foldLine(line string, columns int) []string {
	lines := []string{""}
	for _, word := range strings.Fields(line) {
		last := &lines[len(lines)-1]
		switch {
		case *last == "":
			*last = word
		case len([]rune(*last))+1+len([]rune(word)) <= columns:
			*last += " " + word
		default:
			lines = append(lines, word)
		}
	}
	return lines
}

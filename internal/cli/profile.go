package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/localstore"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/remote"
)

// profileCommand looks at the generations of a profile, here or there, and goes back.
func (p *program) profileCommand() *cli.Command {
	flags := slices.Concat([]cli.Flag{&cli.StringFlag{Name: "to", Usage: "the profile is on `HOST`"}}, profileLinkFlags(), []cli.Flag{storeFlag}, logFlags)
	sub := func(name, usage string, run func(*profileRun, context.Context) error, own cli.Flag) *cli.Command {
		return &cli.Command{
			Name: name, ArgsUsage: "PROFILE", Usage: usage,
			Flags:  append([]cli.Flag{own}, flags...),
			Action: func(c *cli.Context) error { return p.runProfile(c, name, run) },
		}
	}
	return &cli.Command{
		Name:  "profile",
		Usage: "list the generations of a profile, or go back to one",
		Subcommands: []*cli.Command{
			sub("list", "print the generations, the oldest first", (*profileRun).list,
				&cli.BoolFlag{Name: "json", Usage: "print JSON"}),
			sub("rollback", "go back to the generation before the current one", (*profileRun).rollback,
				&cli.IntFlag{Name: "generation", Usage: "go to generation `N` instead"}),
		},
	}
}

// profileLinkFlags are those of a copy that say how to log in.
func profileLinkFlags() []cli.Flag {
	return slices.DeleteFunc(copyFlags(), func(f cli.Flag) bool {
		return !slices.Contains([]string{"ssh", "sudo", "ask-sudo-password", "become-command"}, f.Names()[0])
	})
}

// A generation is one state of a profile, of this machine or another.
type generation struct {
	Number  int           `json:"number"`
	Path    nix.StorePath `json:"path"` // the zero value leads elsewhere
	Made    int64         `json:"made"` // seconds since 1970
	Current bool          `json:"current"`
}

// A profileEnd is the machine that a profile is on.
type profileEnd interface {
	// generations returns the generations of a profile, the oldest first.
	generations(ctx context.Context, profile string) ([]generation, error)
	switchGeneration(ctx context.Context, profile string, number int) error
}

// A profileRun is one of the profile commands under way.
type profileRun struct {
	*cli.Context
	end     profileEnd
	profile string
	stdout  io.Writer
}

func (p *program) runProfile(c *cli.Context, name string, run func(*profileRun, context.Context) error) error {
	if err := p.setOutput(c); err != nil {
		return err
	}
	if c.NArg() != 1 || c.Args().First() == "" || strings.HasPrefix(c.Args().First(), "-") {
		return usagef("say %s profile %s PROFILE", p.name, name)
	}
	r := &profileRun{c, nil, c.Args().First(), p.stdout}
	if c.IsSet("to") {
		return p.runFarProfile(r, run)
	}
	local, err := p.openDirectly(c.Context, c.String("store"), toRead)
	if err != nil {
		return err
	}
	r.end = local
	return errors.Join(run(r, c.Context), local.close())
}

// runFarProfile logs in at the host of --to.
func (p *program) runFarProfile(r *profileRun, run func(*profileRun, context.Context) error) error {
	if r.IsSet("store") {
		return usagef("--store is for a profile of this machine; that of a host is ssh://HOST?remote-store=STORE")
	}
	host, err := parseHost(r.String("to"))
	if err != nil {
		return usagef("%v", err)
	}
	request := &copyRequest{
		host:      host,
		terms:     closure.Terms{DryRun: true}, // no path is copied
		ssh:       r.String("ssh"),
		bootstrap: bootstrapNever,
		become:    become{command: r.String("become-command")},
		sudo:      r.Bool("sudo") || r.Bool("ask-sudo-password"),
		askSudo:   r.Bool("ask-sudo-password"),
	}
	if err := request.checkLogin(); err != nil {
		return err
	}
	login := &copyRun{program: p, copyRequest: request, started: time.Now()}
	err = login.atFar(r.Context.Context, func(far *farEnd) error {
		if err := far.Greet(r.Context.Context); err != nil {
			return err
		}
		if far.Forced() {
			return errors.New("the account runs a forced command and nothing else; log in as a user with a shell")
		}
		r.end = far
		return run(r, r.Context.Context)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", host.name, err)
	}
	return nil
}

func (r *profileRun) list(ctx context.Context) error {
	all, err := r.end.generations(ctx, r.profile)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return fmt.Errorf("%s has no generations", r.profile)
	}
	if r.Bool("json") {
		return printJSON(r.stdout, all)
	}
	for _, g := range all {
		if _, err := fmt.Fprintln(r.stdout, g); err != nil {
			return err
		}
	}
	return nil
}

// String is a line of the list.
func (g generation) String() string {
	line := fmt.Sprintf("%4d  %s  %s", g.Number, time.Unix(g.Made, 0).Format("2006-01-02 15:04:05"), g.place())
	if g.Current {
		line += "  (current)"
	}
	return line
}

func (g generation) place() string {
	if g.Path.IsZero() {
		return "not in the store"
	}
	return g.Path.String()
}

func (r *profileRun) rollback(ctx context.Context) error {
	all, err := r.end.generations(ctx, r.profile)
	if err != nil {
		return err
	}
	g, err := chooseGeneration(all, r.Int("generation"), r.IsSet("generation"))
	if err != nil {
		return fmt.Errorf("%s: %w", r.profile, err)
	}
	if err := r.end.switchGeneration(ctx, r.profile, g.Number); err != nil {
		return err
	}
	_, err = fmt.Fprintf(r.stdout, "%s is generation %d, %s\n", r.profile, g.Number, g.place())
	return err
}

// chooseGeneration returns the one with that number or, where none is wanted, the one
// before the current one.
func chooseGeneration(all []generation, number int, wanted bool) (generation, error) {
	current := slices.IndexFunc(all, func(g generation) bool { return g.Current })
	switch i := slices.IndexFunc(all, func(g generation) bool { return g.Number == number }); {
	case len(all) == 0:
		return generation{}, errors.New("it has no generations")
	case wanted && i >= 0:
		return all[i], nil
	case wanted:
		return generation{}, fmt.Errorf("there is no generation %d", number)
	case current < 0:
		return generation{}, errors.New("it is at none of its generations; --generation N chooses one")
	case current == 0:
		return generation{}, fmt.Errorf("there is no generation before %d", all[0].Number)
	}
	return all[current-1], nil
}

// generations implements profileEnd.
func (l *localEnd) generations(_ context.Context, profile string) ([]generation, error) {
	found, err := localstore.Generations(storeDir(), profile)
	all := make([]generation, len(found))
	for i, g := range found {
		all[i] = generation{g.Number, g.Path, g.Made.Unix(), g.Current}
	}
	return all, err
}

// switchGeneration implements profileEnd.
func (l *localEnd) switchGeneration(ctx context.Context, profile string, number int) error {
	if l.nix != nil {
		return l.runNix(ctx, "nix-env", "-p", profile, "--switch-generation", strconv.Itoa(number))
	}
	return l.store.SwitchGeneration(ctx, profile, number)
}

// generationsScript prints a line for each generation of the profile $1: its number,
// when it was made, whether it is the current one, and where it leads to.
const generationsScript = `c=$(readlink "$1")
for l in "$1"-*-link; do
  [ -L "$l" ] || continue
  n=${l#"$1"-}; n=${n%-link}; m=false; [ "${c##*/}" = "${l##*/}" ] && m=true
  echo "@$n $(stat -c %Y "$l" 2>/dev/null || stat -f %m "$l") $m $(readlink "$l")"
done`

// generations implements profileEnd. It reads the links, which no program there lists
// with what they lead to.
func (f *farEnd) generations(ctx context.Context, profile string) ([]generation, error) {
	text, err := f.output(ctx, remote.Command(generationsScript, profile))
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", profile, err)
	}
	return parseGenerations(text), nil
}

// parseGenerations passes over other lines: the shell's start-up files may print, and
// the name of another profile may begin as this one's does.
func parseGenerations(text string) []generation {
	var all []generation
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 4 || words[0][0] != '@' {
			continue
		}
		number, err := strconv.Atoi(words[0][1:])
		made, timeErr := strconv.ParseInt(words[1], 10, 64)
		if err != nil || timeErr != nil || number <= 0 {
			continue
		}
		path, _, _ := storeDir().Split(words[3])
		all = append(all, generation{number, path, made, words[2] == "true"})
	}
	slices.SortFunc(all, func(a, b generation) int { return cmp.Compare(a.Number, b.Number) })
	return all
}

// switchGeneration implements profileEnd.
func (f *farEnd) switchGeneration(ctx context.Context, profile string, number int) error {
	words := []string{f.nixEnv(), "-p", profile, "--switch-generation", strconv.Itoa(number)}
	if f.ours() {
		words = []string{f.Program(), "profile", "rollback", "--generation", strconv.Itoa(number), profile}
	}
	if err := f.rootCommand(ctx, words); err != nil {
		return fmt.Errorf("switch %s to generation %d: %w", profile, number, err)
	}
	return nil
}

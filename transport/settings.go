package transport

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
)

// settings is the user's SSH configuration as it applies to one host: names in
// lower case, values in order, as ssh -G prints them.
type settings map[string][]string

// first returns the first value of a setting, empty if there is none.
func (s settings) first(key string) string {
	if values := s[key]; len(values) > 0 {
		return values[0]
	}
	return ""
}

// yes reports whether a setting is switched on.
func (s settings) yes(key string) bool {
	switch strings.ToLower(s.first(key)) {
	case "yes", "true":
		return true
	}
	return false
}

// off reports whether a setting is missing, switched off or "none".
func (s settings) off(key string) bool {
	switch strings.ToLower(s.first(key)) {
	case "", "no", "false", "none":
		return true
	}
	return false
}

// A query asks what the configuration says about a host.
type query struct {
	dest    Destination
	options []string // words of ssh's command line
}

// argv is the command line of ssh for a host, up to and without the host. What the
// user wrote as the destination comes first: in ssh the first value counts.
func (q query) argv() []string {
	var argv []string
	if q.dest.User != "" {
		argv = append(argv, "-l", q.dest.User)
	}
	if q.dest.Port != 0 {
		argv = append(argv, "-p", strconv.Itoa(q.dest.Port))
	}
	return append(argv, q.options...)
}

// A resolver finds settings: by the ssh program, or without it by our own reading of
// the plain part of the configuration.
type resolver struct {
	program string // absolute path of ssh; empty if there is none
	log     *slog.Logger

	defaults settings // of the ssh program; nil as long as not asked for
}

func newResolver(log *slog.Logger) *resolver {
	program, err := exec.LookPath("ssh")
	if err != nil {
		program = ""
	}
	return &resolver{program: program, log: log}
}

// resolve returns the settings for a host, and those that hold where nothing is
// configured, which are nil where they are not known.
func (r *resolver) resolve(ctx context.Context, q query) (s, defaults settings, err error) {
	if r.program == "" {
		s, err := plainSettings(q)
		return s, nil, err
	}
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() (err error) {
		s, err = r.ask(ctx, append(q.argv(), "-G", "--", q.dest.Host))
		return err
	})
	if r.defaults == nil {
		work.Go(func() (err error) {
			r.defaults, err = r.ask(ctx, []string{"-F", "none", "-G", "--", "localhost"})
			return err
		})
	}
	if err := work.Wait(); err != nil {
		return nil, nil, fmt.Errorf("ssh configuration of %s: %w", q.dest.Host, err)
	}
	return s, r.defaults, nil
}

// ask runs ssh -G.
func (r *resolver) ask(ctx context.Context, argv []string) (settings, error) {
	cmd := exec.CommandContext(ctx, r.program, argv...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil && stderr.Len() > 0:
		return nil, fmt.Errorf("%s", strings.TrimSpace(stderr.String()))
	case err != nil:
		return nil, fmt.Errorf("%s -G: %w", r.program, err)
	}
	return parseSettings(string(out)), nil
}

// parseSettings reads the output of ssh -G: a name, a space and a value on a line.
func parseSettings(out string) settings {
	s := settings{}
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		if key != "" {
			key = strings.ToLower(key)
			s[key] = append(s[key], value)
		}
	}
	return s
}

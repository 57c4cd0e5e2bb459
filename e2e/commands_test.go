package e2e_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/copy-closure/copy-closure/e2e/harness"
)

// commands are what testdata/README.md describes.
var commands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"agent":        plain(cmdAgent),
	"cache-server": plain(cmdCacheServer),
	"closure":      plain(cmdClosure),
	"count-paths":  plain(cmdCountPaths),
	"daemon":       plain(cmdDaemon),
	"damage":       plain(cmdDamage),
	"exits":        plain(cmdExits),
	"forget":       plain(cmdForget),
	"gc":           plain(cmdGC),
	"gc-loop":      plain(cmdGCLoop),
	"in":           cmdIn,
	"namespace":    cmdNamespace,
	"nginx":        plain(cmdNginx),
	"relay":        plain(cmdRelay),
	"roundtrips":   cmdRoundTrips,
	"s3-server":    plain(cmdS3Server),
	"served":       plain(cmdServed),
	"sshd":         plain(cmdSshd),
	"store":        plain(cmdStore),
	"valid":        cmdValid,
	"without-nix":  cmdWithoutNix,
	"verify":       cmdVerify,
	"web":          plain(cmdWeb),
}

type stateKey struct{}

// state is what a script has started.
type state struct {
	ctx         context.Context
	env         *testscript.Env
	sshd        *harness.Sshd
	relay       *harness.Relay
	servers     int
	cacheServer *cacheServer
	webs        map[string]*harness.WebServer
}

// newState ends with the script, after what was started later.
func newState(env *testscript.Env) *state {
	ctx, cancel := context.WithCancel(context.Background())
	env.Defer(cancel)
	env.Defer(func() { harness.RemoveAll(env.WorkDir) })
	return &state{ctx: ctx, env: env, webs: make(map[string]*harness.WebServer)}
}

// script is a running script with its state.
type script struct {
	*testscript.TestScript
	*state
}

func of(ts *testscript.TestScript) script {
	return script{ts, ts.Value(stateKey{}).(*state)}
}

// plain adapts a command that cannot be negated.
func plain(command func(s script, args []string) error) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg {
			ts.Fatalf("the command cannot be negated")
		}
		ts.Check(command(of(ts), args))
	}
}

// expect compares whether a command failed with whether it should.
func expect(ts *testscript.TestScript, neg bool, err error) {
	if err != nil {
		ts.Logf("[%v]", err)
	}
	switch {
	case err == nil && neg:
		ts.Fatalf("unexpected success")
	case err != nil && !neg:
		ts.Fatalf("unexpected failure")
	}
}

// store returns the store that a script calls by its name or its directory.
func (s script) store(name string) *harness.Store {
	return &harness.Store{Root: s.MkAbs(name)}
}

func need(args []string, n int, usage string) error {
	if len(args) < n {
		return errors.New("usage: " + usage)
	}
	return nil
}

func cmdStore(s script, args []string) error {
	for _, name := range args {
		if _, err := harness.NewStore(s.ctx, s.MkAbs(name)); err != nil {
			return err
		}
		s.Setenv(name, s.MkAbs(name))
	}
	return nil
}

func cmdClosure(s script, args []string) error {
	if err := need(args, 3, "closure tiny|debian|big N STORE"); err != nil {
		return err
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	store := s.store(args[2])
	var c *harness.Closure
	switch args[0] {
	case "tiny":
		c, err = harness.TinyClosure(s.ctx, store, n)
	case "debian":
		c, err = harness.DebianClosure(s.ctx, store, n)
	case "before", "after":
		const bytesEach = 150_000
		c, err = harness.Rebuilt(s.ctx, store, n, int64(n)*bytesEach, args[0] == "after")
	case "big":
		c, err = harness.BigFile(s.ctx, store, int64(n))
	default:
		return fmt.Errorf("unknown kind of closure: %s", args[0])
	}
	if err != nil {
		return err
	}
	s.Setenv("top", c.Roots[0])
	s.Setenv("leaf", c.Paths[0].Path)
	return nil
}

// testPassword is that of users who are made for a script.
const testPassword = "sesame"

func cmdSshd(s script, args []string) error {
	config := harness.SshdConfig{}
	flags := flag.NewFlagSet("sshd", flag.ContinueOnError)
	flags.IntVar(&config.MaxSessions, "max-sessions", 0, "")
	flags.StringVar(&config.ForceCommand, "force", "", "")
	flags.StringVar(&config.KeyCommand, "key-command", "", "")
	flags.StringVar(&config.Banner, "banner", "", "")
	flags.StringVar(&config.Noise, "noise", "", "")
	ours := flags.Bool("ours", false, "")
	bare := flags.Bool("bare", false, "")
	asNix := flags.Bool("as-nix", false, "")
	pipe := flags.Bool("pipe", false, "")
	space := flags.Bool("namespace", false, "")
	readOnly := flags.Bool("ro", false, "")
	flags.BoolVar(&config.NoSFTP, "no-sftp", false, "")
	noExec := flags.Bool("noexec", false, "")
	withoutNix := flags.Bool("without-nix", false, "")
	userName := flags.String("user", "", "")
	shell := flags.String("shell", "/bin/sh", "")
	flags.StringVar(&config.Address, "address", "", "")
	flags.Func("option", "", func(line string) error {
		config.Options = append(config.Options, line)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := need(flags.Args(), 1, "sshd [-max-sessions N] [-force CMD] [-key-command CMD] [-banner TEXT] "+
		"[-noise TEXT] [-without-nix] [-ours] [-as-nix] [-bare] [-namespace [-ro] [-noexec] [-user NAME [-shell FILE]]] [-no-sftp] [-address IP] [-option LINE] [-pipe] STORE"); err != nil {
		return err
	}
	s.servers++
	config.Dir = s.MkAbs(fmt.Sprintf("sshd-%d", s.servers))
	if err := os.Mkdir(config.Dir, 0o755); err != nil {
		return err
	}
	store := s.store(flags.Arg(0))
	config.Env = append(store.Env(), "HOME="+config.Dir)
	path, err := s.farPath(config.Dir, *ours, *asNix, *bare)
	if err != nil {
		return err
	}
	config.Env = append(config.Env, "PATH="+path)
	if *withoutNix {
		config.Prefix = harness.WithoutNixDir(config.Dir)
	}
	if *space {
		n, err := harness.NewNamespace(store, *readOnly)
		if err != nil {
			return err
		}
		config.Prefix = n.Command()
		if *noExec {
			config.Prefix = n.Command(harness.NoExec(filepath.Join(config.Dir, ".cache"))...)
		}
		home := config.Dir
		if *userName != "" {
			user, err := harness.NewUser(filepath.Join(config.Dir, "user"), *userName, testPassword, *shell)
			if err != nil {
				return err
			}
			config.Prefix, home = n.Command(user.Command()...), user.Home()
		}
		config.Env = append(n.Env(), "HOME="+home, "PATH="+path)
	}
	return s.startSshd(config, *pipe)
}

// farPath makes a PATH for the server's sessions, below dir.
func (s script) farPath(dir string, ours, asNix, bare bool) (string, error) {
	nixStore, err := exec.LookPath("nix-store")
	if err != nil {
		return "", err
	}
	path := filepath.Dir(nixStore) + ":/usr/bin:/bin"
	if bare {
		if path, err = harness.BarePath(filepath.Join(dir, "bare")); err != nil {
			return "", err
		}
	}
	if ours {
		path = s.Getenv("bin") + ":" + path
	}
	if asNix {
		bin := filepath.Join(dir, "as-nix")
		ours := filepath.Join(s.Getenv("bin"), "copy-closure")
		err := errors.Join(os.Mkdir(bin, 0o755),
			os.Symlink(ours, filepath.Join(bin, "nix-store")),
			os.Symlink(ours, filepath.Join(bin, "nix-daemon")))
		if err != nil {
			return "", err
		}
		path = bin + ":" + path
	}
	return path, nil
}

// startSshd starts the server that all later commands of the script use.
func (s script) startSshd(config harness.SshdConfig, pipe bool) error {
	sshd, err := harness.StartSshd(config)
	if err != nil {
		return err
	}
	s.Defer(func() {
		sshd.Close()
		s.Logf("sshd's log:\n%s", sshd.Log())
	})
	s.sshd = sshd
	client := sshd.PipeConfig
	if !pipe {
		client = func() (string, error) { return sshd.ClientConfig(sshd.Addr()) }
	}
	file, err := client()
	if err != nil {
		return err
	}
	s.useClient(file)
	s.Setenv("sshd", config.Dir)
	return nil
}

// useClient makes an ssh_config known to everything that the script starts.
func (s script) useClient(file string) {
	s.Setenv("ssh_config", file)
	s.Setenv("NIX_SSHOPTS", "-F "+file)
}

func cmdRelay(s script, args []string) error {
	if err := need(args, 1, "relay start [RTT [RATE]] | rtt RTT | cut up|down N [CONNECTION] | connections N | kill | freeze | thaw"); err != nil {
		return err
	}
	verb, args := args[0], args[1:]
	if verb == "start" {
		return s.startRelay(args)
	}
	if s.relay == nil {
		return errors.New("no relay was started")
	}
	switch verb {
	case "rtt":
		if err := need(args, 1, "relay rtt RTT"); err != nil {
			return err
		}
		rtt, err := time.ParseDuration(args[0])
		s.relay.SetRoundTrip(rtt)
		return err
	case "cut":
		return s.cutRelay(args)
	case "connections":
		if err := need(args, 1, "relay connections N"); err != nil {
			return err
		}
		if got := fmt.Sprint(s.relay.Connections()); got != args[0] {
			return fmt.Errorf("%s connections were made, want %s", got, args[0])
		}
	case "kill":
		s.relay.Kill()
	case "freeze":
		s.relay.Freeze()
	case "thaw":
		s.relay.Thaw()
	default:
		return fmt.Errorf("unknown: relay %s", verb)
	}
	return nil
}

func (s script) cutRelay(args []string) error {
	if err := need(args, 2, "relay cut up|down N [CONNECTION]"); err != nil {
		return err
	}
	n, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	d := map[string]harness.Direction{"up": harness.Up, "down": harness.Down}[args[0]]
	if len(args) == 2 {
		s.relay.CutAfter(d, n)
		return nil
	}
	number, err := strconv.Atoi(args[2])
	s.relay.CutOneAfter(d, n, number)
	return err
}

func (s script) startRelay(args []string) error {
	if s.sshd == nil {
		return errors.New("no sshd was started")
	}
	var link harness.Link
	if len(args) > 0 {
		rtt, err := time.ParseDuration(args[0])
		if err != nil {
			return err
		}
		link.Delay = rtt / 2
	}
	if len(args) > 1 {
		rate, err := strconv.ParseFloat(args[1], 64)
		if err != nil {
			return err
		}
		link.Rate = rate
	}
	relay, err := harness.NewRelay(s.sshd.Addr())
	if err != nil {
		return err
	}
	s.Defer(func() { relay.Close() })
	relay.Set(harness.Up, link)
	relay.Set(harness.Down, link)
	s.relay = relay
	file, err := s.sshd.ClientConfig(relay.Addr())
	s.useClient(file)
	return err
}

// cmdIn runs one of Nix's programs with a store as its own.
func cmdIn(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(need(args, 2, "in STORE PROGRAM ARG…"))
	expect(ts, neg, ts.Exec("env", append(of(ts).store(args[0]).Env(), args[1:]...)...))
}

func cmdExits(s script, args []string) error {
	if err := need(args, 2, "exits CODE PROGRAM ARG…"); err != nil {
		return err
	}
	want, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	got := 0
	if err := s.Exec(args[1], args[2:]...); err != nil {
		exit := (*exec.ExitError)(nil)
		if !errors.As(err, &exit) {
			return err
		}
		got = exit.ExitCode()
	}
	if got != want {
		return fmt.Errorf("exit code %d, want %d", got, want)
	}
	return nil
}

func cmdNamespace(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	flags := flag.NewFlagSet("namespace", flag.ContinueOnError)
	readOnly := flags.Bool("ro", false, "")
	nobody := flags.Bool("nobody", false, "")
	ts.Check(flags.Parse(args))
	args = flags.Args()
	ts.Check(need(args, 2, "namespace [-ro] [-nobody] STORE PROGRAM ARG…"))
	n, err := harness.NewNamespace(s.store(args[0]), *readOnly)
	ts.Check(err)
	line := append([]string{"env"}, n.Env()...)
	if *nobody {
		as, err := s.asNobody()
		ts.Check(err)
		line = append(line, as...)
	}
	line = n.Command(append(line, args[1:]...)...)
	expect(ts, neg, ts.Exec(line[0], line[1:]...))
}

// cmdWithoutNix runs a program where the machine has no /nix.
func cmdWithoutNix(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(need(args, 1, "without-nix PROGRAM ARG…"))
	line := append(harness.WithoutNixDir(ts.MkAbs("without-nix")), args...)
	expect(ts, neg, ts.Exec(line[0], line[1:]...))
}

// asNobody gives the user nobody a home, and a key for the script's server.
func (s script) asNobody() ([]string, error) {
	const nobody = 65534
	home := s.MkAbs("nobody")
	if err := errors.Join(os.MkdirAll(home, 0o755), os.Chown(home, nobody, nobody)); err != nil {
		return nil, err
	}
	line, err := harness.AsNobody(home)
	if err != nil {
		return nil, err
	}
	line = append(line, "PATH="+pathOfOthers(s.Getenv("PATH")))
	if s.sshd == nil {
		return line, nil
	}
	config, err := s.sshd.LendKey(s.Getenv("ssh_config"), nobody, nobody)
	return append(line, "NIX_SSHOPTS=-F "+config), err
}

// pathOfOthers leaves out of a PATH what other users cannot enter: Nix 2.26 and newer
// fail for such a directory.
func pathOfOthers(path string) string {
	closed := func(dir string) bool {
		for ; dir != "/" && dir != "."; dir = filepath.Dir(dir) {
			if info, err := os.Stat(dir); err != nil || info.Mode()&1 == 0 {
				return true
			}
		}
		return false
	}
	return strings.Join(slices.DeleteFunc(filepath.SplitList(path), closed), string(filepath.ListSeparator))
}

func cmdDaemon(s script, args []string) error {
	flags := flag.NewFlagSet("daemon", flag.ContinueOnError)
	readOnly := flags.Bool("ro", false, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := need(flags.Args(), 1, "daemon [-ro] STORE"); err != nil {
		return err
	}
	n, err := harness.NewNamespace(s.store(flags.Arg(0)), *readOnly)
	if err != nil {
		return err
	}
	d, err := n.StartDaemon(s.ctx)
	if err != nil {
		return err
	}
	s.Defer(func() { d.Close() })
	return nil
}

// cmdVerify checks stores with Nix; with -clean, nothing else than valid paths
// may lie in them.
func cmdVerify(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	clean := len(args) > 0 && args[0] == "-clean"
	if clean {
		args = args[1:]
	}
	ts.Check(need(args, 1, "verify [-clean] STORE…"))
	var problems error
	for _, name := range args {
		problems = errors.Join(problems, s.store(name).Verify(s.ctx))
		if clean {
			strays, err := s.store(name).Strays(s.ctx)
			ts.Check(err)
			if len(strays) > 0 {
				problems = errors.Join(problems, fmt.Errorf("%s: not valid: %s", name, strings.Join(strays, " ")))
			}
		}
	}
	expect(ts, neg, problems)
}

func cmdCountPaths(s script, args []string) error {
	if err := need(args, 2, "count-paths STORE N"); err != nil {
		return err
	}
	paths, err := s.store(args[0]).ValidPaths(s.ctx)
	if err != nil {
		return err
	}
	if strconv.Itoa(len(paths)) != args[1] {
		return fmt.Errorf("%s: %d valid paths, want %s", args[0], len(paths), args[1])
	}
	return nil
}

// cmdValid checks that a path is valid in a store, or is not.
func cmdValid(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	ts.Check(need(args, 2, "valid STORE PATH…"))
	valid, err := s.store(args[0]).ValidPaths(s.ctx)
	ts.Check(err)
	for _, p := range args[1:] {
		if slices.Contains(valid, p) == neg {
			ts.Fatalf("%s: valid is %v", p, neg)
		}
	}
}

func cmdDamage(s script, args []string) error {
	if err := need(args, 2, "damage STORE PATH"); err != nil {
		return err
	}
	return s.store(args[0]).Damage(args[1])
}

// cmdForget deletes a path and what refers to it from a store.
func cmdForget(s script, args []string) error {
	if err := need(args, 2, "forget STORE PATH"); err != nil {
		return err
	}
	return s.store(args[0]).Delete(s.ctx, args[1])
}

func cmdGC(s script, args []string) error {
	if err := need(args, 1, "gc STORE"); err != nil {
		return err
	}
	return s.store(args[0]).CollectGarbage(s.ctx)
}

// cmdGCLoop collects garbage in stores, again and again until the script ends.
func cmdGCLoop(s script, args []string) error {
	ctx, stop := context.WithCancel(s.ctx)
	var loops sync.WaitGroup
	for _, name := range args {
		store := s.store(name)
		loops.Go(func() {
			for ctx.Err() == nil {
				if err := store.CollectGarbage(ctx); err != nil && ctx.Err() == nil {
					io.WriteString(s.Stderr(), err.Error())
				}
			}
		})
	}
	s.Defer(func() {
		stop()
		loops.Wait()
	})
	return nil
}

// cmdRoundTrips checks how many round trips a command needs after its login.
// The store is emptied before each run.
func cmdRoundTrips(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	flags := flag.NewFlagSet("roundtrips", flag.ContinueOnError)
	runs := flags.Int("runs", 3, "")
	fresh := flags.String("fresh", "", "")
	ts.Check(flags.Parse(args))
	args = flags.Args()
	ts.Check(need(args, 2, "roundtrips [-runs N] [-fresh STORE] MAX PROGRAM ARG…"))
	limit, err := strconv.ParseFloat(args[0], 64)
	ts.Check(err)
	if s.relay == nil {
		ts.Fatalf("no relay was started")
	}
	got, err := harness.RoundTrips(s.ctx, s.sshd, s.relay, *runs, func(ctx context.Context) (time.Duration, error) {
		if err := s.empty(*fresh); err != nil {
			return 0, err
		}
		start := time.Now()
		err := s.Exec(args[1], args[2:]...)
		return time.Since(start), err
	})
	ts.Check(err)
	s.Logf("%.2f round trips", got)
	if (got > limit) != neg {
		ts.Fatalf("%.2f round trips; the limit is %g", got, limit)
	}
}

func (s script) empty(store string) error {
	if store == "" {
		return nil
	}
	root := s.MkAbs(store)
	if err := harness.RemoveAll(root); err != nil {
		return err
	}
	_, err := harness.NewStore(s.ctx, root)
	return err
}

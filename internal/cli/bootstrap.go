package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/ui"
	"github.com/copy-closure/copy-closure/remote"
	"github.com/copy-closure/copy-closure/transport"
)

// A bootstrapMode says when copy-closure may be uploaded.
type bootstrapMode string

const (
	bootstrapAsk    bootstrapMode = "ask"
	bootstrapAuto   bootstrapMode = "auto"
	bootstrapAlways bootstrapMode = "always"
	bootstrapNever  bootstrapMode = "never"
)

// systems are the names by which uname -sm knows what Go builds for.
var systems = map[string]string{
	"linux-amd64":   "Linux x86_64",
	"linux-arm64":   "Linux aarch64",
	"linux-riscv64": "Linux riscv64",
	"linux-ppc64le": "Linux ppc64le",
	"linux-s390x":   "Linux s390x",
	"darwin-amd64":  "Darwin x86_64",
	"darwin-arm64":  "Darwin arm64",
}

// agentFile begins the names of the files that build-agents.sh makes.
const agentFile = "copy-closure-agent-"

// findAgents finds the programs that could be uploaded, while the caller logs in: to
// hash them takes a moment.
func (r *copyRun) findAgents() <-chan []remote.Agent {
	found := make(chan []remote.Agent, 1)
	go func() {
		agents, err := agentsBeside(os.Executable())
		if err != nil {
			r.log.Info("no program to upload", "reason", err)
		}
		found <- agents
	}()
	return found
}

// agentsBeside finds the slim programs beside this one or in ../lib/copy-closure. For
// machines like this one, this program itself will do.
func agentsBeside(self string, err error) ([]remote.Agent, error) {
	if err != nil {
		return nil, err
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return nil, err
	}
	files := map[string]string{runtime.GOOS + "-" + runtime.GOARCH: self}
	for _, dir := range []string{"../lib/copy-closure", "."} {
		beside, err := filepath.Glob(filepath.Join(filepath.Dir(self), dir, agentFile+"*"))
		if err != nil {
			return nil, err
		}
		for _, file := range beside {
			files[strings.TrimPrefix(filepath.Base(file), agentFile)] = file
		}
	}
	var agents []remote.Agent
	for target, file := range files {
		system, known := systems[target]
		if !known {
			continue
		}
		agent, err := newAgent(system, file)
		if err != nil {
			return nil, err
		}
		agents = append(agents, agent)
	}
	slices.SortFunc(agents, func(a, b remote.Agent) int { return strings.Compare(a.System, b.System) })
	return agents, nil
}

func newAgent(system, file string) (remote.Agent, error) {
	f, err := os.Open(file)
	if err != nil {
		return remote.Agent{}, err
	}
	defer f.Close()
	hash := sha256.New()
	size, err := io.Copy(hash, f)
	if err != nil {
		return remote.Agent{}, err
	}
	sum := hex.EncodeToString(hash.Sum(nil))
	return remote.Agent{
		System: system,
		Name:   remote.AgentName(sum),
		SHA256: sum,
		Size:   size,
		Open:   func() (io.ReadCloser, error) { return os.Open(file) },
	}, nil
}

// atFar connects and runs f. Where the first question finds that a program or a right
// is missing there, and that can be mended, f runs again: nothing has changed by then.
func (r *copyRun) atFar(ctx context.Context, f func(*farEnd) error) error {
	far, err := r.connect(ctx)
	if err != nil {
		return err
	}
	defer far.close()
	for {
		err := f(far)
		if err == nil {
			return nil
		}
		if mended, mendErr := r.mend(ctx, far, err); !mended {
			return mendErr
		}
	}
}

// mend does what makes a far end answer that could not, once for each reason. Where
// there is nothing to be done it returns err, or a better one.
func (r *copyRun) mend(ctx context.Context, far *farEnd, err error) (mended bool, _ error) {
	if bare, ok := errors.AsType[*remote.BareHostError](err); ok && r.bootstrap != bootstrapNever && !far.bootstrapped {
		far.bootstrapped = true
		if err := r.bootstrapFar(ctx, far, bare); err != nil {
			return false, err
		}
		return true, nil
	}
	if refused := sudoRefusal(err); refused != "" && r.sudo && !far.sudoTried {
		far.sudoTried = true
		if err := r.mendSudo(ctx, far, refused); err != nil {
			return false, err
		}
		far.protocolStore.Close()
		if err := r.openFar(ctx, far); err != nil {
			return false, err
		}
		return true, nil
	}
	return false, err
}

// bootstrapFar uploads a program and starts it, with the consent that it takes.
func (r *copyRun) bootstrapFar(ctx context.Context, far *farEnd, bare *remote.BareHostError) error {
	if r.terms.DryRun {
		if r.pull {
			return bare
		}
		r.log.Warn("there is neither copy-closure nor Nix on the far end: to copy, copy-closure would be uploaded first")
		far.empty = true
		return nil
	}
	agent, err := agentOf(far.end.Agents, bare.System)
	if err != nil {
		return err
	}
	if err := r.consent(ctx, agent, bare); err != nil {
		return err
	}
	far.protocolStore.Close()
	far.execs += 6 // to find a place and open SFTP, to write a file, to end it
	host := &uploadHost{farHost: far.farHost, opened: make(chan struct{})}
	store, err := remote.Bootstrap(ctx, host, far.end, bare, r.farOptions(far))
	if err == nil {
		far.protocolStore = store
	}
	return err
}

// agentOf returns the program for a kind of machine, or what to do for it.
func agentOf(agents []remote.Agent, system string) (remote.Agent, error) {
	for _, a := range agents {
		if a.System == system {
			return a, nil
		}
	}
	for target, name := range systems {
		if name == system {
			return remote.Agent{}, fmt.Errorf("the far end, %s, has neither copy-closure nor Nix, and %s%s is not beside this program; make it with: ./build-agents.sh DIRECTORY %s",
				system, agentFile, target, strings.Replace(target, "-", "/", 1))
		}
	}
	return remote.Agent{}, fmt.Errorf("the far end, %q, has neither copy-closure nor Nix, and copy-closure does not run on such machines", system)
}

// consent asks the person at the terminal where that was not decided.
func (r *copyRun) consent(ctx context.Context, agent remote.Agent, bare *remote.BareHostError) error {
	what := fmt.Sprintf("upload copy-closure (%s) to %s on %s", ui.Bytes(agent.Size), bare.Cache, r.host.name)
	if bare.Root {
		what += ", and make the store /nix there"
	}
	if r.bootstrap != bootstrapAsk {
		r.log.Info("no program at the far end: "+what, "bootstrap", string(r.bootstrap))
		return nil
	}
	ask := r.prompter()
	if ask == nil {
		return fmt.Errorf("%w. With --bootstrap auto this would %s", bare, what)
	}
	yes, err := ask.Confirm(ctx, fmt.Sprintf("There is neither copy-closure nor Nix on %s. May I %s?", r.host.name, what))
	if err != nil {
		return err
	}
	if !yes {
		return bare
	}
	return nil
}

// target is where a push goes: to the far end, or to nothing in a dry run that found
// no far end.
func (f *farEnd) target() closure.Target {
	if f.empty {
		return emptyTarget{}
	}
	return targetOf(f.protocolStore)
}

// An uploadHost takes files by SFTP, or through the shell where there is none. SFTP is
// opened behind the first program, which need not wait for it.
type uploadHost struct {
	farHost
	open   sync.Once
	opened chan struct{} // closed when files and err are set
	files  *transport.SFTP
	err    error
}

// Start implements remote.Host.
func (u *uploadHost) Start(ctx context.Context, command string) (io.ReadWriteCloser, error) {
	stream, err := u.farHost.Start(ctx, command)
	u.open.Do(func() {
		if u.command != "" {
			u.err = transport.ErrNoSFTP // it is the login's, not that of the user who is wanted
			close(u.opened)
			return
		}
		go func() {
			defer close(u.opened)
			u.files, u.err = transport.OpenSFTP(ctx, u.conn)
		}()
	})
	return stream, err
}

// Upload implements remote.UploadHost. It is called behind Start,
// once.
func (u *uploadHost) Upload(ctx context.Context, name string, r io.Reader) error {
	<-u.opened
	if errors.Is(u.err, transport.ErrSessionRefused) { // another may have ended
		u.files, u.err = transport.OpenSFTP(ctx, u.conn)
	}
	if errors.Is(u.err, transport.ErrNoSFTP) {
		return u.uploadThroughShell(ctx, name, r)
	}
	if u.err != nil {
		return u.err
	}
	return errors.Join(u.files.CreateFile(name, r), u.files.Close())
}

func (h farHost) uploadThroughShell(ctx context.Context, name string, r io.Reader) error {
	stream, err := h.start(ctx, remote.Command(`umask 077; exec cat >"$1"`, name))
	if err != nil {
		return err
	}
	_, err = io.Copy(stream, r)
	if err == nil {
		err = stream.CloseWrite()
	}
	if err == nil {
		_, err = io.Copy(io.Discard, stream) // to the program's end, however long the link takes
	}
	return errors.Join(err, stream.Close())
}

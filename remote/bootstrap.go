package remote

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// An Agent is a program of ours for some kind of machine, which can be left on one
// that has neither us nor Nix.
type Agent struct {
	System string // as uname -sm prints it: "Linux x86_64"
	Name   string // agent-VERSION-HASH: letters, digits, dots and dashes
	SHA256 string // of its contents, in hexadecimal
	Size   int64
	Open   func() (io.ReadCloser, error)
}

// agentPrefix begins the names of agents.
const agentPrefix = "agent-"

// AgentName names an agent after its SHA-256 in hexadecimal, so that every build has its own name.
func AgentName(sha256 string) string { return agentPrefix + sha256[:16] }

// A BareHostError says that the far end has neither copy-closure nor Nix.
type BareHostError struct {
	System string // as uname -sm prints it; empty: it was not told
	Root   bool   // the user there is root
	Cache  string // the directory for an agent
}

func (e *BareHostError) Error() string {
	return "there is neither copy-closure nor nix-store on the far end, in PATH or the usual profile directories; install one of them there, or say where it is with ?remote-program=PATH"
}

// missingProgram is what the start script says in place of a program, and what it
// knows of the machine behind it.
const missingProgram = "none"

const missingFacts = `s=$(uname -sm 2>/dev/null); u=$(id -u 2>/dev/null); c=${XDG_CACHE_HOME:-$HOME/.cache}/copy-closure
`

const missingLine = `echo "` + marker + missingProgram + ` $u/$s/$c"; exit 127`

// parseMissing returns nil if a program was found.
func parseMissing(line string) *BareHostError {
	facts, missing := strings.CutPrefix(line, missingProgram+" ")
	if !missing {
		return nil
	}
	uid, rest, _ := strings.Cut(facts, "/")
	system, cache, _ := strings.Cut(rest, "/")
	return &BareHostError{System: system, Root: uid == "0", Cache: "/" + strings.TrimPrefix(cache, "/")}
}

// checkFunctions are for files that will be run: own is true for what belongs to this
// user, who alone may change it; sum prints a file's SHA-256, where there is a program
// for that.
const checkFunctions = `own() { set -- $(ls -ldn "$1" 2>/dev/null); case $1 in [-d]rwx------*) [ "$3" = "$(id -u)" ];; *) false;; esac; }
sum() { if command -v sha256sum; then sha256sum <"$1"; elif command -v shasum; then shasum -a 256 <"$1"; elif command -v openssl; then openssl dgst -r -sha256 <"$1"; fi 2>/dev/null | tail -n 1; }
`

// agentScript starts an agent that was left there and is what it was.
func (f FarEnd) agentScript() string {
	if len(f.Agents) == 0 {
		return missingFacts
	}
	var b strings.Builder
	b.WriteString(missingFacts + checkFunctions + "a= h=; case $s in\n")
	for _, a := range f.Agents {
		fmt.Fprintf(&b, "\"%s\") a=%s h=%s;;\n", a.System, a.Name, a.SHA256)
	}
	b.WriteString(`esac
if [ -n "$a" ] && own "$c" && own "$c/$a"; then case $(sum "$c/$a") in "$h"*|"") touch -c "$c/$a"; room "$1"; echo "` + marker + `$c/$a"
[ "$u" != 0 ] || [ -n "$1" ] || set -- local
exec "$c/$a" ` + f.Arguments(agentPrefix) + ` ${1:+--store "$1"};; esac; fi
`)
	return b.String()
}

// prepareScript finds a directory that is only this user's, has room for $1 KiB and
// lets programs run: the cache directory, or one for this time only, named after $2.
// It says which, and whether checksums can be made there.
const prepareScript = missingFacts + checkFunctions + `umask 077
fits() { set -- "$1" "$2" $(df -Pk "$1" 2>/dev/null | tail -n 1); [ "${6:-x}" -le "$2" ] 2>/dev/null && return 1
f="$1/try-$$"; (: >"$f") 2>/dev/null && chmod 700 "$f" && "$f" 2>/dev/null; r=$?; rm -f "$f"; return $r; }
say() { h=no; command -v sha256sum >/dev/null || command -v shasum >/dev/null || command -v openssl >/dev/null && h=sum; echo "` + marker + `$1 $h $2"; exit 0; }
mkdir -p "$c" 2>/dev/null && [ -O "$c" ] && chmod 700 "$c"
own "$c" && fits "$c" "$1" && say keep "$c"
for d in /tmp /dev/shm /var/tmp; do d="$d/copy-closure-$2"
mkdir "$d" 2>/dev/null || continue
own "$d" && fits "$d" "$1" && say once "$d"
rmdir "$d"; done
echo "no directory for $1 KiB that lets programs run: neither $c nor one in /tmp, /dev/shm or /var/tmp" >&2; exit 1`

// installScript checks the file $2 in the directory $1, gives it the name $3, and
// starts it. It removes agents that nobody has started for a month. What is only for
// this time goes when the program ends.
const installScript = peerAsks + roomFunction + checkFunctions + `cd "$1" && own . && chmod 700 "$2" && own "$2" || { echo "$1: not a directory of this user alone" >&2; exit 1; }
h=$(sum "$2"); case $h in "$4"*|"") ;; *) rm -f "$2"; echo "$1/$2: damaged on the way" >&2; exit 1;; esac
mv -f "$2" "$3" || exit 1
n="$1/$3" p=$1 k=$5 w=$6; shift 6
if [ "$k" = keep ]; then find . -name "agent-*" -mtime +30 -exec rm -f {} + 2>/dev/null; find . -name "new-*" -mtime +1 -exec rm -f {} + 2>/dev/null; fi
cd /; room "$w"; echo "` + marker + `$n"
if [ "$k" = keep ]; then exec "$n" "$@"; fi
gone() { rm -rf "$p"; }; trap gone EXIT; trap "exit 143" HUP INT TERM; "$n" "$@"`

// An UploadHost is a Host that takes files.
type UploadHost interface {
	Host
	// Upload makes a file, which does not exist, of all that r has.
	Upload(ctx context.Context, name string, r io.Reader) error
}

// Bootstrap leaves an agent on a bare host, where its user alone can change it, and
// opens a far end that it serves. As root the store is /nix itself. The agent stays
// for further copies, unless programs cannot be started in the cache directory: then
// it lies in a fresh directory, which goes when the session ends.
func Bootstrap(ctx context.Context, host UploadHost, far FarEnd, bare *BareHostError, o Options) (*Store, error) {
	agent, err := far.agentFor(bare.System)
	if err != nil {
		return nil, err
	}
	place, err := preparePlace(ctx, host, agent.Size)
	if err != nil {
		return nil, fmt.Errorf("upload %s: %w", agent.Name, err)
	}
	name := "new-" + rand.Text()
	started := time.Now()
	if err := upload(ctx, host, agent, place, place.dir+"/"+name); err != nil {
		return nil, fmt.Errorf("upload %s to %s: %w", agent.Name, place.dir, err)
	}
	if o.Logger != nil {
		o.Logger.Info("uploaded", "file", place.dir+"/"+agent.Name, "bytes", agent.Size, "took", time.Since(started).Round(time.Millisecond))
	}
	if bare.Root && far.Store == "" {
		far.Store = "local"
	}
	program := place.dir + "/" + agent.Name
	s, err := newStore(ctx, func(ctx context.Context, further bool) (io.ReadWriteCloser, error) {
		if further {
			return start(ctx, host, true, far.command(Quote(program)))
		}
		return host.Start(ctx, far.installCommand(place, name, agent))
	}, o)
	if err == nil {
		s.openLane = func(ctx context.Context) (io.ReadWriteCloser, error) {
			return start(ctx, host, true, far.laneCommand(program))
		}
	}
	return s, err
}

// agentFor returns the agent for a kind of machine.
func (f FarEnd) agentFor(system string) (Agent, error) {
	for _, a := range f.Agents {
		if a.System == system {
			return a, nil
		}
	}
	return Agent{}, &NoAgentError{System: system}
}

// A NoAgentError says that there is no program for a kind of machine.
type NoAgentError struct{ System string }

func (e *NoAgentError) Error() string {
	return fmt.Sprintf("there is no copy-closure for %q to upload", e.System)
}

// A place is a directory at the far end that is this user's alone.
type place struct {
	dir  string
	kept bool
	sums bool // checksums can be made there
}

func preparePlace(ctx context.Context, host Host, size int64) (place, error) {
	const block = 1024
	stream, err := host.Start(ctx, Command(prepareScript, fmt.Sprint(size/block+1), rand.Text()))
	if err != nil {
		return place{}, err
	}
	text, err := io.ReadAll(io.LimitReader(stream, maxPrelude))
	if closeErr := stream.Close(); closeErr != nil {
		return place{}, closeErr
	}
	if err != nil {
		return place{}, err
	}
	_, line, found := strings.Cut(string(text), marker)
	line, _, ended := strings.Cut(line, "\n")
	words := strings.SplitN(line, " ", 3)
	if !found || !ended || len(words) != 3 || !strings.HasPrefix(words[2], "/") {
		return place{}, errors.New("the far end's shell did not say where: " + quoteForeign(string(text)))
	}
	return place{dir: words[2], kept: words[0] == "keep", sums: words[1] == "sum"}, nil
}

// upload sends the agent, and reads it back where nothing there can hash it.
func upload(ctx context.Context, host UploadHost, agent Agent, at place, name string) error {
	contents, err := agent.Open()
	if err != nil {
		return err
	}
	defer contents.Close()
	if err := host.Upload(ctx, name, contents); err != nil || at.sums {
		return err
	}
	stream, err := host.Start(ctx, Command(`exec cat "$1"`, name))
	if err != nil {
		return err
	}
	hash := sha256.New()
	_, err = io.Copy(hash, io.LimitReader(stream, agent.Size+1))
	if err = errors.Join(err, stream.Close()); err != nil {
		return err
	}
	if hex.EncodeToString(hash.Sum(nil)) != agent.SHA256 {
		return errors.New("damaged on the way")
	}
	return nil
}

// installCommand starts an agent that was just uploaded under the name given.
func (f FarEnd) installCommand(at place, name string, agent Agent) string {
	keep := "once"
	if at.kept {
		keep = "keep"
	}
	args := append([]string{at.dir, name, agent.Name, agent.SHA256, keep, f.Store}, strings.Fields(f.Arguments(agentPrefix))...)
	if f.Store != "" {
		args = append(args, "--store", f.Store)
	}
	return Command(installScript, args...)
}

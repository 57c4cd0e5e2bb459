package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/copy-closure/copy-closure/e2e/harness"
)

// readmeChapter is the one whose commands are run as they stand.
const readmeChapter = "## Push, pull, and both"

// Words of the README that mean something else in the test.
const (
	readmeKey  = "builder-1:3KJw4eQZlEg6cJbeQvTtXhV8IT+cKnEMB8W2X9nYyvI="
	readmePath = "/nix/store/…-app-1.0"
)

var readmeCommand = regexp.MustCompile(`(?m)^([a-z]+[0-9]*)\$ (.*)$`)

// TestReadme runs the commands of the README, each on the machine that its prompt
// names. Every machine ends with the closure that the builder has.
func TestReadme(t *testing.T) {
	harness.Need(t, "ssh", "sshd", "nix-store", "nix")
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, chapter, found := strings.Cut(string(text), readmeChapter)
	chapter, _, _ = strings.Cut(chapter, "\n## ")
	commands := readmeCommand.FindAllStringSubmatch(chapter, -1)
	if !found || len(commands) < 10 {
		t.Fatalf("%d commands in the chapter %q", len(commands), readmeChapter)
	}
	r := newReadmeRun(t)
	for _, c := range commands {
		r.run(t, c[1], c[2])
	}
	for name, m := range r.machines {
		paths, err := m.store.ValidPaths(t.Context())
		if err != nil || name != "backup" && len(paths) < len(r.closure.Paths) {
			t.Errorf("%s has %d paths, want %d (%v)", name, len(paths), len(r.closure.Paths), err)
		}
		if err := m.store.Verify(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A readmeRun is the world in which the README's commands make sense.
type readmeRun struct {
	dir      string
	bin      string // has copy-closure
	closure  *harness.Closure
	machines map[string]*readmeMachine
	words    []string // of the README, each followed by what it means here
	config   string   // for all SSH clients
}

// A readmeMachine has a store, a home, and an SSH server.
type readmeMachine struct {
	store *harness.Store
	home  string
}

func newReadmeRun(t *testing.T) *readmeRun {
	r := &readmeRun{dir: t.TempDir(), machines: make(map[string]*readmeMachine)}
	r.config, r.bin = filepath.Join(r.dir, "ssh_config"), filepath.Join(r.dir, "bin")
	if err := errors.Join(os.Mkdir(r.bin, 0o755), os.Symlink(buildProduct(t), filepath.Join(r.bin, "copy-closure"))); err != nil {
		t.Fatal(err)
	}
	builder := r.machine(t, "builder")
	r.machine(t, "backup")
	var err error
	if r.closure, err = harness.TinyClosure(t.Context(), builder.store, 20); err != nil {
		t.Fatal(err)
	}
	result := filepath.Join(builder.home, "result")
	if err := os.Symlink(r.closure.Roots[0], result); err != nil {
		t.Fatal(err)
	}
	expressions := filepath.Join(builder.home, "nixexprs")
	err = errors.Join(os.Mkdir(expressions, 0o755), os.WriteFile(filepath.Join(expressions, "default.nix"), []byte("{ }: { }\n"), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	port := freeAddr(t)
	web := httpServer(t, http.FileServer(http.Dir(filepath.Join(r.dir, "srv/cache"))))
	bucket := s3mem.New()
	if err := bucket.CreateBucket("releases"); err != nil {
		t.Fatal(err)
	}
	s3 := httpServer(t, gofakes3.New(bucket).Server())
	t.Setenv("AWS_ACCESS_KEY_ID", "key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	r.words = []string{
		readmePath, r.closure.Roots[0],
		"/srv/app/result", result,
		"sftp://backup/srv/cache", "sftp://backup" + filepath.Join(r.dir, "srv/backup"),
		"/srv/cache", filepath.Join(r.dir, "srv/cache"),
		"https://cache.example.org", web,
		"https://s3.example.org", s3,
		"http://builder:8080", "http://" + port,
		"--listen :8080", "--listen " + port,
	}
	return r
}

// machine returns the machine of that name, which is made when it is first named.
func (r *readmeRun) machine(t *testing.T, name string) *readmeMachine {
	if m := r.machines[name]; m != nil {
		return m
	}
	store, err := harness.NewStore(t.Context(), filepath.Join(r.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	m := &readmeMachine{store: store, home: filepath.Join(r.dir, name, "home")}
	sshd := filepath.Join(r.dir, name, "sshd")
	if err := errors.Join(os.Mkdir(m.home, 0o755), os.Mkdir(sshd, 0o755)); err != nil {
		t.Fatal(err)
	}
	server, err := harness.StartSshd(harness.SshdConfig{Dir: sshd, Env: append(store.Env(), "HOME="+m.home)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	if err := r.addHost(name, server); err != nil {
		t.Fatal(err)
	}
	r.machines[name] = m
	return m
}

// addHost makes a server known to SSH clients by the name of its machine.
func (r *readmeRun) addHost(name string, server *harness.Sshd) error {
	file, err := server.ClientConfig(server.Addr())
	if err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	all, err := os.OpenFile(r.config, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = all.WriteString(strings.Replace(string(text), "Host "+harness.FarHost, "Host "+name, 1))
	return errors.Join(err, all.Close())
}

// run runs a command line; one that ends with & goes on until the test ends.
func (r *readmeRun) run(t *testing.T, name, line string) {
	t.Helper()
	m := r.machine(t, name)
	for _, other := range regexp.MustCompile(`--to (\w+) `).FindAllStringSubmatch(line, -1) {
		r.machine(t, other[1])
	}
	line = strings.NewReplacer(r.words...).Replace(line)
	front, background := strings.CutSuffix(line, "&")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	cmd := exec.CommandContext(ctx, "sh", "-c", "exec "+front)
	cmd.Dir = m.home
	cmd.Env = append(os.Environ(), append(m.store.Env(), "HOME="+m.home, "NIX_SSHOPTS=-F "+r.config,
		"PATH="+r.bin+":"+os.Getenv("PATH"))...)
	if background {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Signal(syscall.SIGTERM); cmd.Wait(); cancel() })
		awaitListener(t, r.words[len(r.words)-1])
		return
	}
	defer cancel()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s$ %s: %v\n%s", name, line, err, out)
	}
	if strings.Contains(line, "key public") {
		r.words = append([]string{readmeKey, strings.TrimSpace(string(out))}, r.words...)
	}
}

// awaitListener waits until somebody listens where "--listen ADDR" says.
func awaitListener(t *testing.T, listen string) {
	_, addr, _ := strings.Cut(listen, " ")
	for range 200 {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("nobody listens at %s", addr)
}

func freeAddr(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// httpServer serves until the test ends, and returns its URL.
func httpServer(t *testing.T, handler http.Handler) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return fmt.Sprint("http://", l.Addr())
}

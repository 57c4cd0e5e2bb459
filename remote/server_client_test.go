package remote_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/internal/wire"
	"github.com/copy-closure/copy-closure/remote"
)

// The environment of a process that is to serve instead of to test.
const (
	serveReport   = "TEST_SERVE_REPORT"    // file that gets the paths which are valid in the end, or an error
	serveObjects  = "TEST_SERVE_OBJECTS"   // not empty: the store begins with the objects of all nixClients
	serveReadOnly = "TEST_SERVE_READ_ONLY" // not empty: as if there were no --write
)

// TestMain lets the test binary stand in for nix-store --serve and nix-daemon --stdio.
func TestMain(m *testing.M) {
	if os.Getenv(serveReport) == "" {
		os.Exit(m.Run())
	}
	report, err := serveForTest()
	if err != nil {
		report = fmt.Sprintln("error:", err)
		fmt.Fprint(os.Stderr, report)
	}
	if err := os.WriteFile(os.Getenv(serveReport), []byte(report), 0o666); err != nil {
		panic(err)
	}
}

func serveForTest() (report string, err error) {
	var objects nixtest.Closure
	if os.Getenv(serveObjects) != "" {
		for _, client := range nixClients {
			objects = append(objects, client.objects...)
		}
	}
	store := nixtest.NewStore(objects...)
	stream := struct {
		io.Reader
		io.WriteCloser
	}{os.Stdin, os.Stdout}
	options := remote.ServerOptions{Write: os.Getenv(serveReadOnly) == ""}
	serve := remote.Serve
	if slices.Contains(os.Args, "--stdio") {
		serve = serveDaemon
	}
	if err := serve(context.Background(), stream, serverBackend{store}, options); err != nil {
		return "", err
	}
	return joinPaths(store.All()), store.Verify()
}

func serveDaemon(ctx context.Context, stream io.ReadWriteCloser, b remote.Backend, o remote.ServerOptions) error {
	return remote.ServeDaemon(ctx, stream, b.(serverBackend), o)
}

// clientObjects are what the tests with real clients copy.
func clientObjects() nixtest.Closure {
	drv, out := nixtest.Derivation("fixed", nixtest.Node{Content: "x"})
	return append(nixtest.Random(5, 25), drv, out)
}

func joinPaths(paths []nix.StorePath) string {
	var b strings.Builder
	for _, p := range sorted(paths) {
		b.WriteString(p.String() + "\n")
	}
	return b.String()
}

// nixClients are the stock programs that copy over the serve protocol, and over the
// worker protocol. The host
// localhost makes them start the far program without ssh.
var nixClients = []struct {
	name       string
	push, pull []string
	objects    nixtest.Closure
}{
	{
		name:    "nix-copy-closure",
		push:    []string{"nix-copy-closure", "--to", "localhost"},
		pull:    []string{"nix-copy-closure", "--from", "localhost"},
		objects: clientObjects(),
	},
	{
		name:    "nix copy", // to which a derivation means its outputs
		push:    []string{"nix", "copy", "--to", "ssh://localhost"},
		pull:    []string{"nix", "copy", "--no-check-sigs", "--from", "ssh://localhost"},
		objects: nixtest.Random(6, 25),
	},
	{
		name:    "nix copy ssh-ng",
		push:    []string{"nix", "copy", "--to", "ssh-ng://localhost"},
		pull:    []string{"nix", "copy", "--no-check-sigs", "--from", "ssh-ng://localhost"},
		objects: nixtest.Random(7, 25),
	},
}

// clientCommand prepares such a program to meet our server.
func clientCommand(t *testing.T, root string, words []string, objects nixtest.Closure, report string) *exec.Cmd {
	t.Helper()
	words = append(slices.Clone(words), "--store", root)
	words = append(words, pathStrings(objects.Paths())...)
	cmd := nixCommand(t, root, words[0], words[1:]...)
	cmd.Env = append(cmd.Env, "PATH="+servePrograms(t)+":"+os.Getenv("PATH"), serveReport+"="+report)
	return cmd
}

func TestNixPushesToUs(t *testing.T) {
	for _, client := range nixClients {
		t.Run(client.name, func(t *testing.T) {
			root := nixRoot(t)
			fillNix(t, root, client.objects)
			report := filepath.Join(t.TempDir(), "report")
			runNix(t, clientCommand(t, root, client.push, client.objects, report))
			got, err := os.ReadFile(report)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(got), joinPaths(client.objects.Paths())); d != "" {
				t.Errorf("valid here (-got +want):\n%s", d)
			}
		})
	}
}

func TestNixPullsFromUs(t *testing.T) {
	for _, client := range nixClients {
		t.Run(client.name, func(t *testing.T) {
			root := nixRoot(t)
			cmd := clientCommand(t, root, client.pull, client.objects, os.DevNull)
			cmd.Env = append(cmd.Env, serveObjects+"=1")
			runNix(t, cmd)
			runNix(t, nixCommand(t, root, "nix-store", "--store", root, "--verify", "--check-contents"))
			check := append([]string{"--store", root, "--check-validity"}, pathStrings(client.objects.Paths())...)
			runNix(t, nixCommand(t, root, "nix-store", check...))
		})
	}
}

// TestNixShowsOurErrors pushes to a server that may not write.
func TestNixShowsOurErrors(t *testing.T) {
	for _, client := range nixClients {
		t.Run(client.name, func(t *testing.T) {
			root := nixRoot(t)
			objects := nixtest.Chain(1)
			fillNix(t, root, objects)
			cmd := clientCommand(t, root, client.push, objects, os.DevNull)
			cmd.Env = append(cmd.Env, serveReadOnly+"=1")
			err := cmd.Run()
			if text := fmt.Sprint(cmd.Stderr); err == nil || !strings.Contains(text, "started without --write") {
				t.Errorf("error is %v, and Nix prints %q", err, text)
			}
		})
	}
}

func runNix(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, cmd.Stderr)
	}
}

func pathStrings(paths []nix.StorePath) []string {
	return strings.Fields(joinPaths(paths))
}

// servePrograms makes a directory with programs nix-store and nix-daemon that serve
// from this test binary. A shell stands before it, and gets the signal with which Nix's
// clients end their far program as soon as they have what they wanted. The server
// holds their stderr, so that who waits for the end of that waits for the server.
func servePrograms(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\n'%s' \"$@\"\nexit $?\n", self)
	for _, name := range []string{"nix-store", "nix-daemon"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// fillNix makes objects valid in a store of the real Nix.
func fillNix(t *testing.T, root string, objects nixtest.Closure) {
	t.Helper()
	cmd := nixCommand(t, root, "nix-store", "--store", root, "--serve", "--write")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stdin.Write(serverAddAll(objects)); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(stdout, make([]byte, 16+8*len(objects))); err != nil {
		t.Error(err)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, cmd.Stderr)
	}
}

// serverAddAll is what a client says that greets and adds objects.
func serverAddAll(objects nixtest.Closure) []byte {
	var said bytes.Buffer
	w := wire.NewWriter(&said)
	w.Uint64(0x390c9deb)
	w.Uint64(0x207)
	for _, o := range objects {
		writeServerAdd(w, o.Info)
		w.Write(o.NAR)
	}
	w.Flush()
	return said.Bytes()
}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/copy-closure/copy-closure/e2e/harness"
)

// A lab is the directory in which everything happens, and the programs.
type lab struct {
	*options
	root    string // below options.dir
	product string
	farBin  string // a PATH with copy-closure in it
	number  int    // of fresh names used
	sources map[string]*source
	images  []string // that can be used
}

// A source is a closure in a store that is only read.
type source struct {
	*harness.Closure
	store *harness.Store
}

func newLab(ctx context.Context, o *options) (*lab, error) {
	root, err := os.MkdirTemp(o.dir, "copy-closure-bench-")
	if err != nil {
		return nil, err
	}
	l := &lab{options: o, root: root, sources: make(map[string]*source)}
	if l.product, err = buildProduct(o, root); err == nil {
		err = l.makeFarBin()
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *lab) close() { removeAll(l.root) }

func (l *lab) file(name string) string { return filepath.Join(l.root, name) }

// nearPeak and farPeak are where the wrapped processes leave their peaks.
func (l *lab) nearPeak() string { return l.file("near-peak") }
func (l *lab) farPeak() string  { return l.file("far-peak") }

// makeFarBin makes a copy-closure for the far end that measures itself.
func (l *lab) makeFarBin() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	l.farBin = l.file("far-bin")
	if err := os.Mkdir(l.farBin, 0o755); err != nil {
		return err
	}
	script := fmt.Sprintf("#!/bin/sh\nexec '%s' %s '%s' '%s' \"$@\"\n", self, measureVerb, l.farPeak(), l.product)
	return os.WriteFile(filepath.Join(l.farBin, "copy-closure"), []byte(script), 0o755)
}

// measured wraps a command line of ours.
func (l *lab) measured(args ...string) ([]string, error) {
	self, err := os.Executable()
	return append([]string{self, measureVerb, l.nearPeak(), l.product}, args...), err
}

// source returns the closure of that name, made with fill the first time.
func (l *lab) source(ctx context.Context, name string, fill filler) (*source, error) {
	if s := l.sources[name]; s != nil {
		return s, nil
	}
	fmt.Fprintf(os.Stderr, "  making %s\n", name)
	store, err := harness.NewStore(ctx, l.file("source-"+name))
	if err != nil {
		return nil, err
	}
	c, err := fill(ctx, store)
	if err != nil {
		return nil, err
	}
	l.sources[name] = &source{c, store}
	return l.sources[name], nil
}

type filler func(context.Context, *harness.Store) (*harness.Closure, error)

// imageSize is that of a file system for destinations.
const imageSize = 3 << 30

// fresh returns a directory that never existed, on a file system that is new
// if that was asked for, and how to get rid of it.
func (l *lab) fresh(ctx context.Context) (dir string, discard func(), err error) {
	l.number++
	dir = l.file(fmt.Sprintf("fresh-%d", l.number))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", nil, err
	}
	if l.fs != "ext4" {
		return dir, func() { removeAll(dir) }, nil
	}
	image, err := l.takeImage()
	if err == nil {
		err = mountImage(ctx, image, dir)
	}
	return dir, func() { l.discardImage(image, dir) }, err
}

// takeImage returns the file of an image that is not in use. An image has all its memory
// from the beginning, and is used again: who writes to it is not to pay for memory that a
// disk would have, which in a virtual machine takes longer than writing.
func (l *lab) takeImage() (string, error) {
	if n := len(l.images); n > 0 {
		image := l.images[n-1]
		l.images = l.images[:n-1]
		return image, nil
	}
	l.number++
	image := l.file(fmt.Sprintf("image-%d", l.number))
	f, err := os.Create(image)
	if err != nil {
		return "", err
	}
	if err := errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, imageSize), f.Close()); err != nil {
		return "", fmt.Errorf("room for %s, of %d bytes: %w", image, imageSize, err)
	}
	return image, nil
}

// mountImage makes a file system in an image.
func mountImage(ctx context.Context, image, dir string) error {
	// Without the lazy options the kernel goes on initialising tables while the
	// benchmark runs; to discard is to give back the memory.
	mkfs := "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
	if err := execute(ctx, "mkfs.ext4", "-q", "-F", "-E", mkfs, image); err != nil {
		return err
	}
	return execute(ctx, "mount", "-o", "loop", image, dir)
}

// discardImage waits until the file system is gone. Processes of a far end have mounts of
// their own, which keep it alive until they have ended, and the last of them to end writes
// to the image what is still in memory: that is not to happen while the next tool runs.
func (l *lab) discardImage(image, dir string) {
	const patience = 2 * time.Minute
	for end := time.Now().Add(patience); isMounted(image, dir); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			fmt.Fprintf(os.Stderr, "bench: %s is still in use\n", image)
			return
		}
	}
	l.images = append(l.images, image)
}

// isMounted unmounts an image, and reports whether it has its loop device nevertheless.
func isMounted(image, dir string) bool {
	if err := syscall.Unmount(dir, 0); errors.Is(err, syscall.EBUSY) {
		return true
	}
	devices, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is good
	for _, device := range devices {
		if file, err := os.ReadFile(device); err == nil && strings.TrimSpace(string(file)) == image {
			return true
		}
	}
	return false
}

func execute(ctx context.Context, line ...string) error {
	out, err := exec.CommandContext(ctx, line[0], line[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(line, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// A far is a server with a store, behind a link.
type far struct {
	sshd   *harness.Sshd
	relay  *harness.Relay
	config string // for ssh -F
	dir    string
}

// A server is what sessions find at the far end.
type server int

const (
	serverNix    server = iota // Nix alone
	serverOurs                 // copy-closure in their PATH
	serverForced               // nix-daemon, whatever they ask for
)

// startFar starts a server whose sessions have the store as theirs.
func (l *lab) startFar(store *harness.Store, link *harness.Link, kind server) (*far, error) {
	f, err := l.newFar()
	if err != nil {
		return nil, err
	}
	config := harness.SshdConfig{Dir: f.dir, Env: append(store.Env(), "HOME="+f.dir)}
	switch kind {
	case serverOurs:
		config.Env = append(config.Env, "PATH="+l.farBin+":/usr/bin:/bin")
	case serverForced:
		config.ForceCommand = "exec nix-daemon --stdio"
	}
	return f, f.start(config, link)
}

// newFar makes the directory of a server.
func (l *lab) newFar() (*far, error) {
	l.number++
	f := &far{dir: l.file(fmt.Sprintf("sshd-%d", l.number))}
	return f, os.Mkdir(f.dir, 0o755)
}

// start starts the server, and puts a link in front of it unless that is nil.
func (f *far) start(config harness.SshdConfig, link *harness.Link) (err error) {
	if f.sshd, err = harness.StartSshd(config); err != nil {
		return err
	}
	addr := f.sshd.Addr()
	if link != nil {
		if f.relay, err = harness.NewRelay(addr); err != nil {
			f.close()
			return err
		}
		f.relay.Set(harness.Up, *link)
		f.relay.Set(harness.Down, *link)
		addr = f.relay.Addr()
	}
	f.config, err = f.sshd.ClientConfig(addr)
	return err
}

// wire returns how many bytes have gone through the link.
func (f *far) wire() int64 {
	if f.relay == nil {
		return 0
	}
	return f.relay.Bytes(harness.Up) + f.relay.Bytes(harness.Down)
}

// killAlong resets all connections so many times while size bytes go up, until stop is
// called.
func (f *far) killAlong(times int, size int64) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var killing sync.WaitGroup
	killing.Go(func() {
		for n := 1; n <= times && ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
			if f.relay.Bytes(harness.Up) >= int64(n)*size/int64(times+1) {
				f.relay.Kill()
				n++
			}
		}
	})
	return func() {
		cancel()
		killing.Wait()
	}
}

func (f *far) close() {
	if f.relay != nil {
		f.relay.Close()
	}
	f.sshd.Close()
	removeAll(f.dir)
}

// timed runs a command line and returns how long it took.
func timed(ctx context.Context, line, env []string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = append(os.Environ(), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	start := time.Now()
	err := cmd.Run()
	d := time.Since(start)
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %s", strings.Join(line, " "), err, tail(out.Bytes()))
	}
	return d, nil
}

func tail(out []byte) []byte {
	return bytes.TrimSpace(out[max(0, len(out)-2000):])
}

// heading names what the numbers depend on and opens the table.
func (l *lab) heading() string {
	nix, _ := exec.Command("nix", "--version").Output()
	ssh, _ := exec.Command("ssh", "-V").CombinedOutput()
	where := "a fresh ext4 file system in an image in " + l.dir
	if l.fs != "ext4" {
		where = "a fresh directory in " + l.dir
	}
	return fmt.Sprintf("%d CPUs, %s, %s. Sources in %s, destinations on %s. Runs of each tool: %d, alternating.\n\n"+
		"| case | tool | median | min–max | ratio | to reach | peak memory here, there |\n|---|---|---|---|---|---|---|\n",
		runtime.NumCPU(), strings.TrimSpace(string(nix)), strings.TrimSpace(string(ssh)), l.dir, where, l.runs)
}

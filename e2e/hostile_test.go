package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// The budgets of one session, as docs/limits.md has them. Memory is the peak of the
// whole process.
const (
	memoryBudget    = 256 << 20 // bytes, of a client that takes the largest window
	questionBudget  = 64 << 20  // bytes, of a reader who asks which paths are valid
	temprootsBudget = 65 << 20  // bytes of the session's file
	partialBudget   = 0         // bytes that are kept of a path nobody vouches for
	requestBudget   = 0         // requests to caches on behalf of a reader
)

// A victim is a served store and the session of a hostile client.
type victim struct {
	t     *testing.T
	store string
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   io.ReadCloser
	*wire.Writer
	errors bytes.Buffer
}

// attack starts a server of a new store for a client that is about to misbehave.
func attack(t *testing.T, product, conf string, args ...string) *victim {
	root := t.TempDir()
	v := &victim{t: t, store: filepath.Join(root, "store")}
	etc := filepath.Join(root, "etc")
	if err := os.MkdirAll(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(etc, "nix.conf"), []byte("require-sigs = true\n"+conf), 0o644); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "HOME="+root, "XDG_DATA_HOME="+root, "XDG_CACHE_HOME="+root, "NIX_CONF_DIR="+etc, "COPY_CLOSURE_PEER=1")
	add := exec.Command(product, "store", "add", "--store", v.store, os.Args[0])
	add.Env = env
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("make a store: %v\n%s", err, out)
	}
	v.cmd = exec.Command(product, append([]string{"serve", "--store", v.store}, args...)...)
	v.cmd.Env, v.cmd.Stderr = env, &v.errors
	var err error
	if v.in, err = v.cmd.StdinPipe(); err == nil {
		v.out, err = v.cmd.StdoutPipe()
	}
	if err == nil {
		err = v.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.cmd.Process.Kill(); v.cmd.Wait() })
	v.Writer = wire.NewWriter(v.in)
	return v
}

// serve begins a session of the serve protocol.
func (v *victim) serve() {
	v.Uint64(0x390c9deb)
	v.Uint64(2<<8 | 7)
	v.Flush()
	var greeting [1024]byte
	n, err := v.out.Read(greeting[:])
	for err == nil && !bytes.Contains(greeting[:n], binary.LittleEndian.AppendUint64(nil, 0x5452eecb)) {
		var more int
		more, err = v.out.Read(greeting[n:])
		n += more
	}
	if err != nil {
		v.t.Fatalf("greeting: %v", err)
	}
}

// peer goes on in the peer protocol, with the largest window.
func (v *victim) peer() *peerAttack {
	v.serve()
	for _, n := range []uint64{0x72656570, 1, 64 << 20, 0} {
		v.Uint64(n)
	}
	v.Flush()
	return &peerAttack{v: v}
}

// A peerAttack writes messages of the peer protocol.
type peerAttack struct {
	v      *victim
	offset uint64
	packer *zstd.Encoder
	packed bytes.Buffer
}

// send writes bytes of messages.
func (a *peerAttack) send(b []byte) error {
	for chunk := range slices.Chunk(b, 128<<10) {
		var header [16]byte
		binary.LittleEndian.PutUint32(header[:], 1)
		binary.LittleEndian.PutUint32(header[4:], uint32(len(chunk)))
		binary.LittleEndian.PutUint64(header[8:], a.offset)
		a.offset += uint64(len(chunk))
		a.v.Write(header[:])
		a.v.Write(chunk)
	}
	return a.v.Flush()
}

// sendPacked writes messages compressed.
func (a *peerAttack) sendPacked(b []byte) error {
	if a.packer == nil {
		a.packer, _ = zstd.NewWriter(&a.packed, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	}
	a.packed.Reset()
	a.packer.Write(b)
	a.packer.Flush()
	return a.send(peerMessage(10, append(binary.AppendUvarint(nil, uint64(len(b))), a.packed.Bytes()...)))
}

func peerMessage(kind byte, payload []byte) []byte {
	return append(binary.AppendUvarint([]byte{kind}, uint64(len(payload))), payload...)
}

func peerText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func peerPath(p nix.StorePath) []byte {
	hash, _ := nix.DecodeNix32(p.HashPart())
	return peerText(hash, p.Name())
}

// peerInfo is a path info with signatures that are as long as the protocol allows.
func peerInfo(p nix.StorePath, size uint64, signatures int) []byte {
	b := append(peerPath(p), bytes.Repeat([]byte{1}, 32)...)
	b = binary.AppendUvarint(b, size)
	b = append(b, 0, 0, 0) // no references, deriver, time
	b = binary.AppendUvarint(b, uint64(signatures))
	for range signatures {
		b = peerText(b, strings.Repeat("s", 1000))
	}
	return peerText(b, "")
}

// valid returns the one path of the store.
func (v *victim) valid() nix.StorePath {
	entries, err := os.ReadDir(filepath.Join(v.store, "nix/store"))
	for _, e := range entries {
		if p, err := nix.DefaultStoreDir.ParseBase(e.Name()); err == nil {
			return p
		}
	}
	v.t.Fatalf("the store is empty: %v", err)
	return nix.StorePath{}
}

// memory is the most memory, in bytes, that the server ever had.
func (v *victim) memory() int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.cmd.Process.Pid))
	if err != nil {
		harness.Unavailable(v.t, err)
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			if err != nil {
				v.t.Fatal(err)
			}
			return kib << 10
		}
	}
	v.t.Fatal("the server has ended before its memory was read: ", v.errors.String())
	return 0
}

// awaitQuiet waits until the client is done, or the server has stopped working.
func (v *victim) awaitQuiet(done <-chan error) {
	before := int64(-1)
	for {
		select {
		case <-done:
			done = nil
		case <-time.After(200 * time.Millisecond):
		}
		ticks := v.ticks()
		if ticks == before {
			return
		}
		before = ticks
	}
}

// ticks is the processor time that the server has used.
func (v *victim) ticks() int64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", v.cmd.Process.Pid))
	if err != nil {
		harness.Unavailable(v.t, err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return user + system
}

// size is the sum of the files under a directory of the store.
func (v *victim) size(dir string) (sum int64) {
	filepath.WalkDir(filepath.Join(v.store, "nix", dir), func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				sum += info.Size()
			}
		}
		return nil
	})
	return sum
}

// report prints a row of the table in docs/limits.md and compares a peak with its budget.
func (v *victim) report(client, resource string, peak, budget int64, unit string) {
	v.t.Helper()
	if unit == "MiB" {
		v.t.Logf("| %s | %s | %d MiB | %d MiB |", client, resource, peak>>20, budget>>20)
	} else {
		v.t.Logf("| %s | %s | %d | %d |", client, resource, peak, budget)
	}
	if peak > budget {
		v.t.Errorf("%s: %s is %d, more than its budget of %d", client, resource, peak, budget)
	}
}

// TestHostile has hostile clients take what they can of a server, and compares the peaks
// with the budgets that docs/limits.md promises.
func TestHostile(t *testing.T) {
	product := buildProduct(t)
	for name, client := range map[string]func(*testing.T, string){
		"queued requests": hostileRequests,
		"long question":   hostileQuestion,
		"many questions":  hostileHolds,
		"writer's roots":  hostileWriterHolds,
		"caches":          hostileForecast,
		"bomb":            hostileBomb,
		"daemon":          hostileDaemonClient,
	} {
		t.Run(name, func(t *testing.T) { client(t, product) })
	}
}

// hostileRequests has a reader queue requests whose path infos are large, and never
// read an answer.
func hostileRequests(t *testing.T, product string) {
	v := attack(t, product, "", "--read-only")
	a, path := v.peer(), v.valid()
	request := func(channel byte, signatures int) []byte {
		b := append([]byte{channel}, peerPath(path)...)
		return peerMessage(21, append(append(b, peerInfo(path, 1<<40, signatures)...), 0))
	}
	for channel := range byte(16) {
		a.send(request(channel, 0))
	}
	done := make(chan error, 1)
	go func() { // until the server takes no more, or ends
		for range 200 {
			for channel := range byte(16) {
				if err := a.sendPacked(request(channel, 500)); err != nil {
					done <- err
					return
				}
			}
		}
		done <- nil
	}()
	v.awaitQuiet(done)
	v.report("reader queues 3,200 requests with 500 signatures each", "memory", v.memory(), memoryBudget, "MiB")
}

// inventedPath is one of many paths that are nowhere, with a name as long as allowed.
func inventedPath(n int) string {
	return fmt.Sprintf("/nix/store/%032d-%s", n, strings.Repeat("n", 200))
}

// query sends a question which of n invented paths are valid, numbered from first on.
func (v *victim) query(lock bool, first, n int) error {
	v.Uint64(1)
	v.Bool(lock)
	v.Bool(false)
	v.Uint64(uint64(n))
	for i := range n {
		v.String(inventedPath(first + i))
	}
	return v.Flush()
}

// answer reads an answer of no paths. It reports false if the server hung up.
func (v *victim) answer() bool {
	var none [8]byte
	_, err := io.ReadFull(v.out, none[:])
	return err == nil
}

// hostileQuestion has a reader ask about a million paths that are nowhere.
func hostileQuestion(t *testing.T, product string) {
	v := attack(t, product, "", "--read-only")
	v.serve()
	if err := v.query(true, 0, 1_000_000); err != nil || !v.answer() {
		t.Fatalf("the question was not answered: %v: %s", err, v.errors.String())
	}
	v.report("reader asks about 1,000,000 invented paths", "memory", v.memory(), questionBudget, "MiB")
	v.report("reader asks about 1,000,000 invented paths", "temporary roots", v.size("var/nix/temproots"), temprootsBudget, "MiB")
}

// hostileHolds has a reader hold ever more paths.
func hostileHolds(t *testing.T, product string) {
	v := attack(t, product, "", "--read-only")
	v.serve()
	for round := range 6 {
		if err := v.query(true, round*25_000, 25_000); err != nil || !v.answer() {
			t.Fatalf("round %d was not answered: %v: %s", round, err, v.errors.String())
		}
	}
	v.report("reader holds 150,000 paths in 6 questions", "memory", v.memory(), questionBudget, "MiB")
	v.report("reader holds 150,000 paths in 6 questions", "temporary roots", v.size("var/nix/temproots"), temprootsBudget, "MiB")
}

// hostileWriterHolds has a writer hold ever more paths until the server has enough.
func hostileWriterHolds(t *testing.T, product string) {
	v := attack(t, product, "", "--write")
	v.serve()
	var memory, roots int64
	for round := range 6 {
		if err := v.query(true, round*50_000, 50_000); err != nil || !v.answer() {
			break
		}
		memory, roots = v.memory(), v.size("var/nix/temproots")
	}
	v.report("writer holds up to 300,000 paths", "memory", memory, memoryBudget, "MiB")
	v.report("writer holds up to 300,000 paths", "temporary roots", roots, temprootsBudget, "MiB")
	v.in.Close()
	io.Copy(io.Discard, v.out)
	v.cmd.Wait()
	if !strings.Contains(v.errors.String(), "temporary roots of 64 MiB") {
		t.Errorf("the writer is not told why the session ended: %s", v.errors.String())
	}
}

// hostileForecast has a reader ask what the caches have.
func hostileForecast(t *testing.T, product string) {
	var requests atomic.Int64
	cache := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if r.URL.Path == "/nix-cache-info" {
			io.WriteString(w, "StoreDir: /nix/store\n")
			return
		}
		http.NotFound(w, r)
	}))
	defer cache.Close()
	for _, test := range []struct {
		mode   string
		client string
		budget int64
	}{{"--read-only", "reader asks what the caches have of 20,000 paths", requestBudget}, {"--write", "writer asks what the caches have of 20,000 paths", 10_010}} {
		requests.Store(0)
		v := attack(t, product, "substituters = "+cache.URL+"\n", test.mode)
		v.serve()
		v.Uint64(0x65726f66)
		v.Uint64(20_000)
		for i := range 20_000 {
			v.String(inventedPath(i))
		}
		v.Flush()
		v.answer()
		v.report(test.client, "requests to caches", requests.Load(), test.budget, "")
	}
}

// hostileBomb has a writer whom nobody trusts send a large path as a few bytes, and go away
// before its end.
func hostileBomb(t *testing.T, product string) {
	const size = 256 << 20
	v := attack(t, product, "", "--write")
	before := v.size("store")
	a := v.peer()
	hash := nix.SHA256Hash(sha256.Sum256([]byte("anything")))
	ca := nix.ContentAddress{Method: nix.Recursive, Hash: hash}
	path, err := nix.DefaultStoreDir.ContentAddressedPath("big", ca, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	info := append(peerPath(path), hash.Bytes()...)
	info = append(binary.AppendUvarint(info, 2*size), 0, 0, 0, 0)
	info = peerText(info, ca.String())
	a.send(peerMessage(1, append(append([]byte{0, 1}, info...), 0)))
	var head bytes.Buffer
	w := wire.NewWriter(&head)
	for _, token := range []string{"nix-archive-1", "(", "type", "regular", "contents"} {
		w.String(token)
	}
	w.Uint64(2*size - 4096)
	w.Flush()
	a.send(peerMessage(3, append([]byte{0}, head.Bytes()...)))
	zeros := peerMessage(3, make([]byte, 256<<10))
	for range size / len(zeros) {
		if err := a.sendPacked(zeros); err != nil {
			t.Fatalf("%v: %s", err, v.errors.String())
		}
	}
	done := make(chan error)
	close(done)
	v.awaitQuiet(done)
	if grown := v.size("store") - before; grown < size/2 {
		t.Errorf("only %d bytes were unpacked: the bomb did not go off", grown)
	}
	v.report(fmt.Sprintf("untrusted writer sends %d KiB for 256 MiB and hangs up", a.offset>>10), "memory", v.memory(), memoryBudget, "MiB")
	v.in.Close()
	io.Copy(io.Discard, v.out)
	v.cmd.Wait()
	left := v.size("var/nix/copy-closure") + v.size("store") - before
	v.report("untrusted writer hangs up in a path of 512 MiB", "bytes left on the disk", left, partialBudget, "")
}

// hostileDaemonClient has a reader of the worker protocol ask about paths that are nowhere,
// and hold them.
func hostileDaemonClient(t *testing.T, product string) {
	v := attack(t, product, "", "--read-only", "--daemon-protocol")
	v.Uint64(0x6e697863)
	v.Uint64(1<<8 | 26)
	v.Bool(false) // no processor is preferred
	v.Bool(false) // no space is reserved
	v.Flush()
	r := wire.NewReader(v.out)
	for range 2 {
		r.Uint64() // greeting
	}
	v.wantLast(r)
	const paths = 150_000
	v.Uint64(31) // QueryValidPaths
	v.Uint64(paths)
	for i := range paths {
		v.String(inventedPath(i))
	}
	v.Flush()
	v.wantLast(r)
	r.Uint64() // no paths
	const roots = 20_000
	go func() {
		for i := range roots {
			v.Uint64(11) // AddTempRoot
			v.String(inventedPath(i))
		}
		v.Flush()
	}()
	for range roots {
		v.wantLast(r)
		r.Uint64()
	}
	if err := r.Err(); err != nil {
		t.Fatalf("%v: %s", err, v.errors.String())
	}
	v.report("reader of the worker protocol asks about 150,000 invented paths", "memory", v.memory(), questionBudget, "MiB")
	v.report("reader of the worker protocol holds 20,000 paths one by one", "temporary roots", v.size("var/nix/temproots"), temprootsBudget, "MiB")
}

// wantLast reads the word behind which a daemon's answer is.
func (v *victim) wantLast(r *wire.Reader) {
	v.t.Helper()
	if got := r.Uint64(); got != 0x616c7473 || r.Err() != nil {
		v.t.Fatalf("read %#x (error %v): %s", got, r.Err(), v.errors.String())
	}
}

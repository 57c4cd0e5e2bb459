package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/substitute"
)

const (
	narInfoRequests = 20_000
	manyClients     = 64
	serverMemory    = 128 // MiB
)

// cacheServe compares our server of a live store with nginx, which has the same
// narinfos and NARs as files.
func cacheServe(ctx context.Context, l *lab) ([]row, error) {
	src, err := l.source(ctx, "packages-200", packages(200, 1200*mb).fill)
	if err != nil {
		return nil, err
	}
	ours, err := startOurServer(ctx, l, src.store)
	if err != nil {
		return nil, err
	}
	defer ours.stop()
	files := l.file("static-cache")
	defer removeAll(files)
	var narInfos, nars []string
	for _, p := range src.Paths {
		narInfo, nar, err := ours.save(ctx, path.Base(p.Path)[:32], files)
		if err != nil {
			return nil, err
		}
		narInfos, nars = append(narInfos, narInfo), append(nars, nar)
	}
	nginx, err := startNginx(ctx, l, files)
	if err != nil {
		return nil, err
	}
	defer nginx.stop()

	var all []row
	for _, q := range []struct {
		title   string
		paths   []string
		count   int
		clients int
		limit   float64 // times the time of nginx
	}{
		{"20,000 narinfos, one connection", narInfos, narInfoRequests, 1, 1 / 0.5},
		{"20,000 narinfos, 64 connections", narInfos, narInfoRequests, manyClients, 1 / 0.5},
		{"NARs of 200 packages, 1.2 GB, one connection", nars, len(nars), 1, 1 / 0.7},
		{"NARs of 200 packages, 64 times, 64 connections", nars, manyClients, manyClients, 0},
	} {
		mine := row{name: "served cache: " + q.title, tool: us.name}
		static := row{name: mine.name, tool: "nginx, from files =", ratio: "1"}
		for range l.runs {
			for _, to := range []struct {
				*webServer
				*row
			}{{ours, &mine}, {nginx, &static}} {
				d, err := to.load(ctx, q.paths, q.count, q.clients)
				if err != nil {
					return all, err
				}
				to.times = append(to.times, d)
			}
		}
		ratio := float64(harness.Median(mine.times)) / float64(harness.Median(static.times))
		mine.ratio = fmt.Sprintf("%.2f", ratio)
		if q.limit > 0 {
			mine.threshold, mine.verdict = fmt.Sprintf("≤ %.2f", q.limit), verdict(ratio, q.limit)
		} else {
			mine.near = float64(residentPeak(ours.cmd.Process.Pid)) / 1024
			mine.threshold, mine.verdict = fmt.Sprintf("≤ %d MiB", serverMemory), verdict(mine.near, serverMemory)
		}
		all = append(all, mine, static)
	}
	return all, nil
}

// A webServer is a server under way.
type webServer struct {
	cmd  *exec.Cmd
	addr string
}

func (s *webServer) stop() {
	err := s.cmd.Process.Signal(os.Interrupt)
	if err = errors.Join(err, s.cmd.Wait()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
}

func startOurServer(ctx context.Context, l *lab, store *harness.Store) (*webServer, error) {
	cmd := exec.CommandContext(ctx, l.product, "cache", "serve", "--listen", "127.0.0.1:0", "--store", store.Root)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewReader(stderr)
	first, err := lines.ReadString('\n')
	go io.Copy(os.Stderr, lines)
	_, addr, ok := strings.Cut(strings.TrimSpace(first), "http://")
	if !ok {
		return nil, errors.Join(fmt.Errorf("cache serve says %q", first), err, cmd.Wait())
	}
	return &webServer{cmd, addr}, nil
}

// nginxConf serves files as fast as nginx can.
const nginxConf = `daemon off; worker_processes auto; pid %[1]s/nginx.pid; error_log %[1]s/nginx.log;
events { worker_connections 512; }
http { access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; server { listen %[2]s; root %[1]s; } }
`

func startNginx(ctx context.Context, l *lab, root string) (*webServer, error) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &webServer{addr: free.Addr().String()}
	conf := filepath.Join(l.root, "nginx.conf")
	err = errors.Join(free.Close(), os.WriteFile(conf, fmt.Appendf(nil, nginxConf, root, s.addr), 0o644))
	if err != nil {
		return nil, err
	}
	program, err := exec.LookPath("nginx")
	if err != nil {
		program = "/usr/sbin/nginx"
	}
	// Its workers run as another user, who may not enter the lab.
	s.cmd = exec.CommandContext(ctx, program, "-c", conf, "-g", "user root;")
	s.cmd.Stderr = os.Stderr
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	for range 100 {
		if conn, err := net.Dial("tcp", s.addr); err == nil {
			return s, conn.Close()
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.stop()
	return nil, errors.New("nginx does not start")
}

// save puts a narinfo and its NAR below dir and returns their names in the cache.
func (s *webServer) save(ctx context.Context, hashPart, dir string) (narInfo, nar string, err error) {
	narInfo = "/" + hashPart + ".narinfo"
	if err := s.saveFile(ctx, narInfo, dir); err != nil {
		return "", "", err
	}
	text, err := os.ReadFile(filepath.Join(dir, narInfo))
	if err != nil {
		return "", "", err
	}
	n, err := substitute.ParseNARInfo(harness.StoreDir, text)
	if err != nil {
		return "", "", err
	}
	nar = "/" + n.URL
	return narInfo, nar, s.saveFile(ctx, nar, dir)
}

func (s *webServer) saveFile(ctx context.Context, name, dir string) error {
	r, err := http.NewRequestWithContext(ctx, "GET", "http://"+s.addr+name, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	file := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, res.Body)
	return errors.Join(err, f.Close())
}

// load makes count requests for paths, in turn, over some connections, and returns
// how long it took. The client does as little as it can.
func (s *webServer) load(ctx context.Context, paths []string, count, clients int) (time.Duration, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var running sync.WaitGroup
	start := time.Now()
	for range clients {
		running.Go(func() {
			if err := s.client(ctx, func() (string, bool) {
				i := int(next.Add(1)) - 1
				return paths[i%len(paths)], i < count
			}); err != nil {
				cancel(err)
			}
		})
	}
	running.Wait()
	return time.Since(start), context.Cause(ctx)
}

func (s *webServer) client(ctx context.Context, next func() (string, bool)) error {
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	r := bufio.NewReaderSize(conn, 256<<10)
	for name, more := next(); more; name, more = next() {
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", name); err != nil {
			return err
		}
		if err := skipResponse(r); err != nil {
			return fmt.Errorf("%s from %s: %w", name, s.addr, err)
		}
	}
	return nil
}

// skipResponse reads a response with a length and throws it away.
func skipResponse(r *bufio.Reader) error {
	status, err := r.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 200 ")) {
		return fmt.Errorf("it answers %q", status)
	}
	size := -1
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			break
		}
		if key, value, _ := bytes.Cut(line, []byte(": ")); bytes.EqualFold(key, []byte("Content-Length")) {
			if size, err = strconv.Atoi(string(value)); err != nil {
				return err
			}
		}
	}
	if size < 0 {
		return errors.New("it does not say how long its answer is")
	}
	_, err = r.Discard(size)
	return err
}

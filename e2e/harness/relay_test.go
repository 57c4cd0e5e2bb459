package harness_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/copy-closure/copy-closure/e2e/harness"
)

// echo starts a server that sends back what it receives and ends each
// connection when the client has ended it.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

func startRelay(t *testing.T, target string) *harness.Relay {
	t.Helper()
	r, err := harness.NewRelay(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// A loaded machine may make a ping late but never early, so the median is
// asked for precision and every single one for the lower bound.
func TestRelayDelay(t *testing.T) {
	r := startRelay(t, echo(t))
	r.SetRoundTrip(100 * time.Millisecond)
	var times []time.Duration
	for range 11 {
		d := ping(t, dial(t, r.Addr()))
		if d < 100*time.Millisecond {
			t.Errorf("ping took %v, want at least 100ms", d)
		}
		times = append(times, d)
	}
	slices.Sort(times)
	t.Logf("pings: median %v, %v", times[len(times)/2], times)
}

// ping returns how long one byte takes to a server that echoes and back.
func ping(t *testing.T, c *net.TCPConn) time.Duration {
	t.Helper()
	start := time.Now()
	if _, err := c.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return time.Since(start)
}

// Stop-and-wait would need a round trip for every chunk: 16 MiB in chunks of
// 64 KiB would take 256 of them.
func TestRelayKeepsManyChunksUnderWay(t *testing.T) {
	r := startRelay(t, echo(t))
	r.SetRoundTrip(200 * time.Millisecond)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	start := time.Now()
	if got := roundTrip(t, dial(t, r.Addr()), want); !bytes.Equal(got, want) {
		t.Fatalf("got %d bytes back, want the %d sent, in order", len(got), len(want))
	}
	if d := time.Since(start); d > 256*200*time.Millisecond/4 {
		t.Errorf("16 MiB took %v", d)
	}
	for _, d := range []harness.Direction{harness.Up, harness.Down} {
		if got := r.Bytes(d); got != int64(len(want)) {
			t.Errorf("Bytes(%v) = %d, want %d", d, got, len(want))
		}
	}
}

// roundTrip sends data, ends the sending side and reads to the end.
func roundTrip(t *testing.T, c *net.TCPConn, data []byte) []byte {
	t.Helper()
	go func() {
		c.Write(data)
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestRelayRate(t *testing.T) {
	r := startRelay(t, echo(t))
	r.Set(harness.Up, harness.Link{Rate: 4 << 20})
	start := time.Now()
	roundTrip(t, dial(t, r.Addr()), make([]byte, 1<<20))
	d := time.Since(start)
	if d < 240*time.Millisecond {
		t.Errorf("1 MiB at 4 MiB/s took %v, want at least 240ms", d)
	}
	t.Logf("1 MiB at 4 MiB/s: %v", d)
}

func TestRelayCutAfter(t *testing.T) {
	for _, n := range []int64{0, 1, 1000, 100_000} {
		r := startRelay(t, echo(t))
		r.CutAfter(harness.Up, n)
		c := dial(t, r.Addr())
		go c.Write(make([]byte, 200_000))
		if _, err := io.Copy(io.Discard, c); err == nil {
			t.Errorf("cut after %d: the connection ended in order, want an error", n)
		}
		if got := r.Bytes(harness.Up); got != n {
			t.Errorf("cut after %d: %d bytes passed", n, got)
		}
		if got := roundTrip(t, dial(t, r.Addr()), []byte("again")); string(got) != "again" {
			t.Errorf("cut after %d: the next connection echoed %q, want %q", n, got, "again")
		}
	}
}

func TestRelayCutOneAfter(t *testing.T) {
	r := startRelay(t, echo(t))
	first, second := dial(t, r.Addr()), dial(t, r.Addr())
	ping(t, first)
	ping(t, second)
	r.CutOneAfter(harness.Up, 10, 2)
	for range 100 {
		ping(t, first)
	}
	go second.Write(make([]byte, 100))
	if _, err := io.Copy(io.Discard, second); err == nil {
		t.Error("the second connection ended in order, want an error")
	}
	ping(t, first)
	if got := r.Connections(); got != 2 {
		t.Errorf("%d connections, want 2", got)
	}
}

func TestRelayFreezeAndKill(t *testing.T) {
	r := startRelay(t, echo(t))
	c := dial(t, r.Addr())
	r.Freeze()
	c.Write([]byte("x"))
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read from a frozen link: %v, want a timeout", err)
	}
	r.Thaw()
	c.SetReadDeadline(time.Time{})
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("read after thaw: %v", err)
	}
	r.Kill()
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read after kill: %v, want a reset", err)
	}
}

package cli

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"time"

	"github.com/copy-closure/copy-closure/remote"
	"github.com/copy-closure/copy-closure/transport"
)

// A link is measured with a few bytes first, so that a slow one is not burdened, and with
// more where those took no time. They are random, as ssh may compress.
const (
	firstProbe  = 64 << 10
	secondProbe = 2 << 20
	probeIsLong = 200 * time.Millisecond
)

// measureRate finds out how many bytes a second one session carries there, or here in a
// pull, at least. It takes two or three round trips.
func (f *farEnd) measureRate(ctx context.Context, pull bool) (float64, error) {
	probe := fmt.Sprintf("head -c %d >/dev/null; echo; exec cat >/dev/null", firstProbe)
	exchange := sendProbe
	if pull {
		probe = fmt.Sprintf("head -c %d /dev/urandom; read x || exit 0; exec head -c %d /dev/urandom", firstProbe, secondProbe)
		exchange = takeProbe
	}
	f.execs += 3
	session, err := f.start(ctx, remote.Command(probe))
	if err != nil {
		return 0, err
	}
	rate, err := exchange(session, f.conn.RTT())
	if err != nil {
		session.Close()
		return 0, err
	}
	return rate, session.Close()
}

// sendProbe sends bytes and waits for word that they have come.
func sendProbe(s *transport.Session, rtt time.Duration) (float64, error) {
	bytes := make([]byte, secondProbe)
	rand.Read(bytes)
	start := time.Now()
	if _, err := s.Write(bytes[:firstProbe]); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
		return 0, err
	}
	if took := time.Since(start); took > probeIsLong+2*rtt {
		return rateOf(firstProbe, took, 2*rtt), s.CloseWrite()
	}
	start = time.Now()
	_, err := s.Write(bytes)
	if err == nil {
		err = s.CloseWrite()
	}
	if err == nil {
		_, err = io.Copy(io.Discard, s)
	}
	return rateOf(secondProbe, time.Since(start), rtt), err
}

// takeProbe asks for bytes.
func takeProbe(s *transport.Session, rtt time.Duration) (float64, error) {
	start := time.Now()
	if _, err := io.CopyN(io.Discard, s, firstProbe); err != nil {
		return 0, err
	}
	if took := time.Since(start); took > probeIsLong+2*rtt {
		return rateOf(firstProbe, took, 2*rtt), s.CloseWrite()
	}
	start = time.Now()
	if _, err := io.WriteString(s, "\n"); err != nil {
		return 0, err
	}
	_, err := io.CopyN(io.Discard, s, secondProbe)
	return rateOf(secondProbe, time.Since(start), rtt), err
}

// rateOf is in bytes a second; the waiting is not the link's fault.
func rateOf(bytes int, took, waited time.Duration) float64 {
	return float64(bytes) / max(took-waited, time.Millisecond).Seconds()
}

package substitute

import (
	"io"
	"net/http"
	"time"
)

// writeStep is how much of a response must get through within the time for which a
// client may stall.
const writeStep = 128 << 10

// A response counts what is written, and gives up a client that takes nothing for
// a while; a slow one is served for as long as it takes.
type response struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
	until   time.Time // when the client is given up
	status  int       // 0 until the header is written
	sent    int64
	broken  bool // it was broken off
}

func newResponse(w http.ResponseWriter, stall time.Duration) *response {
	res := &response{ResponseWriter: w, control: http.NewResponseController(w), stall: stall}
	res.extend()
	return res
}

// extend gives the client time for another step. Where deadlines are not supported,
// as in a test, there are none.
func (res *response) extend() {
	until := time.Now().Add(res.stall)
	if until.Sub(res.until) > res.stall/16 {
		res.until = until
		_ = res.control.SetWriteDeadline(until)
	}
}

// WriteHeader implements http.ResponseWriter.
func (res *response) WriteHeader(status int) {
	if res.status == 0 {
		res.status = status
		res.ResponseWriter.WriteHeader(status)
	}
}

// Write implements io.Writer.
func (res *response) Write(p []byte) (int, error) {
	res.WriteHeader(http.StatusOK)
	done := 0
	for done < len(p) {
		res.extend()
		n, err := res.ResponseWriter.Write(p[done:min(done+writeStep, len(p))])
		done += n
		res.sent += int64(n)
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// ReadFrom implements io.ReaderFrom, for files that the kernel can send by itself.
func (res *response) ReadFrom(r io.Reader) (int64, error) {
	res.WriteHeader(http.StatusOK)
	limited, ok := r.(*io.LimitedReader)
	if !ok {
		limited = &io.LimitedReader{R: r, N: 1 << 62}
	}
	var done int64
	for limited.N > 0 {
		res.extend()
		n, err := io.CopyN(res.ResponseWriter, limited.R, min(writeStep, limited.N))
		limited.N -= n
		done += n
		res.sent += n
		if err == io.EOF {
			break
		}
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

package ui

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/copy-closure/copy-closure/internal/progress"
	"github.com/copy-closure/copy-closure/internal/show"
)

// A Mode says how progress is shown.
type Mode string

// The modes of --progress.
const (
	Auto  Mode = "auto"  // a bar on a terminal, plain lines elsewhere
	Bar   Mode = "bar"   // a line that is drawn over
	Plain Mode = "plain" // a line now and then
	None  Mode = "none"
)

const (
	redrawEvery = 100 * time.Millisecond
	plainEvery  = 5 * time.Second
)

// A Screen is where messages and progress go, so that they do not mix.
type Screen struct {
	file *os.File
	mode Mode

	mu    sync.Mutex
	bar   *progressbar.ProgressBar // nil until there is something to draw
	drawn bool                     // the bar is on the terminal
}

// NewScreen returns a screen on f, a terminal or not.
func NewScreen(f *os.File, mode Mode) *Screen {
	if mode == Auto || mode == "" {
		mode = Plain
		if term.IsTerminal(int(f.Fd())) {
			mode = Bar
		}
	}
	return &Screen{file: f, mode: mode}
}

// Write writes a message, above the progress line if there is one. It is the one place
// where text leaves for standard error: what would control a terminal is escaped, and
// further lines of the message are indented, so that no foreign text looks like ours.
func (s *Screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	text, ended := bytes.CutSuffix(p, []byte("\n"))
	message := show.Indented(string(text))
	if ended {
		message += "\n"
	}
	if _, err := io.WriteString(s.file, message); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (s *Screen) erase() {
	if s.drawn {
		s.bar.Clear()
		s.drawn = false
	}
}

// Show draws m until the returned function is called, which erases the drawing.
func (s *Screen) Show(m *progress.Meter) (stop func()) {
	every := redrawEvery
	draw := s.drawBar
	switch s.mode {
	case None:
		return func() {}
	case Plain:
		every, draw = plainEvery, s.drawPlain
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		pace := newPace(time.Now())
		for {
			select {
			case now := <-tick.C:
				state := m.State()
				pace.observe(now, state.DoneBytes)
				draw(state, pace)
			case <-quit:
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-done
		s.mu.Lock()
		defer s.mu.Unlock()
		s.erase()
		s.bar = nil
	}
}

func (s *Screen) drawPlain(state progress.State, p *pace) {
	if state.TotalPaths > 0 {
		fmt.Fprintln(s, summary(state, p))
	}
}

func (s *Screen) drawBar(state progress.State, _ *pace) {
	if state.TotalPaths == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bar == nil {
		s.bar = progressbar.NewOptions64(state.TotalBytes,
			progressbar.OptionSetWriter(s.file),
			progressbar.OptionShowBytes(true),
			progressbar.OptionShowTotalBytes(true),
			progressbar.OptionShowCount(),
			progressbar.OptionUseIECUnits(true),
			progressbar.OptionSetWidth(10),
			progressbar.OptionSetPredictTime(true),
			progressbar.OptionSetElapsedTime(false))
		s.bar.Reset() // it counts time from here on, and has no rate to show yet
		return
	}
	s.bar.ChangeMax64(max(state.TotalBytes, state.DoneBytes, 1))
	s.bar.Describe(describe(state))
	s.bar.Set64(state.DoneBytes)
	s.drawn = true
}

// describe tells the paths done and what is under way, in a few columns.
func describe(state progress.State) string {
	const columns = 24
	text := fmt.Sprintf("%d/%d paths", state.DonePaths, state.TotalPaths)
	if len(state.Active) == 0 {
		return text
	}
	name := state.Active[0]
	if room := columns - len(text); len(name) > room {
		name = name[:max(room-1, 0)] + "~"
	}
	return text + " " + name
}

// summary is the progress in words.
func summary(state progress.State, p *pace) string {
	text := fmt.Sprintf("%s of %s, %s of %s paths", Bytes(state.DoneBytes), Bytes(state.TotalBytes),
		Count(int(state.DonePaths)), Count(int(state.TotalPaths)))
	rate := p.rate()
	if rate > 0 {
		text += fmt.Sprintf(", %s/s", Bytes(int64(rate)))
	}
	if left := state.TotalBytes - state.DoneBytes; rate > 0 && left > 0 {
		text += ", " + Seconds(time.Duration(float64(left)/rate*float64(time.Second))) + " left"
	}
	return text
}

// A pace is the rate over the last few seconds.
type pace struct {
	at    []time.Time
	bytes []int64
}

const paceWindow = 5 * time.Second

func newPace(start time.Time) *pace { return &pace{at: []time.Time{start}, bytes: []int64{0}} }

func (p *pace) observe(now time.Time, bytes int64) {
	p.at, p.bytes = append(p.at, now), append(p.bytes, bytes)
	for len(p.at) > 2 && now.Sub(p.at[0]) > paceWindow {
		p.at, p.bytes = p.at[1:], p.bytes[1:]
	}
}

// rate is in bytes per second.
func (p *pace) rate() float64 {
	last := len(p.at) - 1
	seconds := p.at[last].Sub(p.at[0]).Seconds()
	if seconds <= 0 {
		return 0
	}
	return float64(p.bytes[last]-p.bytes[0]) / seconds
}

package ui

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
)

// A LogHandler writes one line for a record: a prefix, the message, and the
// attributes as name=value.
type LogHandler struct {
	level  slog.Level
	prefix string
	attrs  string

	mu *sync.Mutex
	w  io.Writer
}

// NewLogHandler returns a handler that writes records of level and above to w.
func NewLogHandler(w io.Writer, prefix string, level slog.Level) *LogHandler {
	return &LogHandler{level: level, prefix: prefix, mu: new(sync.Mutex), w: w}
}

// Enabled implements slog.Handler.
func (h *LogHandler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level }

// Handle implements slog.Handler.
func (h *LogHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString(h.prefix)
	if r.Level >= slog.LevelWarn {
		b.WriteString("warning: ")
	}
	b.WriteString(r.Message)
	b.WriteString(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		b.WriteString(formatAttr(a))
		return true
	})
	b.WriteByte('\n')
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := io.WriteString(h.w, b.String())
	return err
}

func formatAttr(a slog.Attr) string { return fmt.Sprintf(" %s=%v", a.Key, a.Value) }

// WithAttrs implements slog.Handler.
func (h *LogHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	more := *h
	for _, a := range attrs {
		more.attrs += formatAttr(a)
	}
	return &more
}

// WithGroup implements slog.Handler; groups are not shown.
func (h *LogHandler) WithGroup(string) slog.Handler { return h }

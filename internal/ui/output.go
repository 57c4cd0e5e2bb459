package ui

import (
	"bufio"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"

	"github.com/copy-closure/copy-closure/internal/show"
)

// An Output is standard output. What would control a terminal is escaped. Names of files
// are the exception: like ls, Printf leaves them as they are where there is no terminal.
type Output struct {
	io.Writer
	terminal bool
}

// NewOutput returns an output to f, a terminal or not.
func NewOutput(f *os.File) *Output { return &Output{f, term.IsTerminal(int(f.Fd()))} }

// Buffered returns the same output with a buffer, for many lines; flush writes it out.
func (o *Output) Buffered() (buffered *Output, flush func() error) {
	w := bufio.NewWriter(o.Writer)
	return &Output{w, o.terminal}, w.Flush
}

// Write writes text that ends where a character ends.
func (o *Output) Write(p []byte) (int, error) {
	if _, err := io.WriteString(o.Writer, show.Text(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Printf formats a line with words in it that a program may need byte by byte. On a
// terminal each of them stays on the line, whatever it holds.
func (o *Output) Printf(format string, words ...any) error {
	for i, word := range words {
		if text, ok := word.(string); ok && o.terminal {
			words[i] = show.Line(text)
		}
	}
	_, err := fmt.Fprintf(o.Writer, format, words...)
	return err
}

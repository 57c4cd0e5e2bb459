package delta_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/copy-closure/copy-closure/internal/delta"
)

// drawFiles draws a directory whose files are made of few different pieces.
func drawFiles(t *rapid.T) []file {
	var files []file
	for i := range rapid.IntRange(0, 5).Draw(t, "files") {
		var data []byte
		for range rapid.IntRange(0, 4).Draw(t, "pieces") {
			seed := rapid.Uint64Range(1, 4).Draw(t, "seed")
			size := rapid.IntRange(0, 1<<rapid.IntRange(1, 17).Draw(t, "magnitude")).Draw(t, "size")
			make := rapid.SampledFrom([]func(uint64, int) []byte{noise, text, zeros}).Draw(t, "kind")
			data = append(data, make(seed, size)...)
		}
		files = append(files, file{string(rune('a' + i)), data})
	}
	return files
}

func zeros(_ uint64, n int) []byte { return make([]byte, n) }

// edit changes files as builds do: here and there, in place or not.
func edit(t *rapid.T, files []file) []file {
	files = slices.Clone(files)
	for i := range files {
		data := slices.Clone(files[i].data)
		for range rapid.IntRange(0, 6).Draw(t, "edits") {
			at := rapid.IntRange(0, len(data)).Draw(t, "at")
			end := rapid.IntRange(at, min(len(data), at+300)).Draw(t, "end")
			with := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "with")
			data = slices.Replace(data, at, end, with...)
		}
		files[i].data = data
	}
	if len(files) > 1 && rapid.Bool().Draw(t, "swap") {
		files[0].data, files[1].data = files[1].data, files[0].data
	}
	if len(files) > 0 && rapid.Bool().Draw(t, "remove") {
		files = slices.Delete(files, 0, 1)
	}
	return files
}

func TestAnyEdits(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		files := drawFiles(rt)
		base, want := archive(files...), archive(edit(rt, files)...)
		roundTrip(t, base, want, delta.Mapping{})
		roundTripAgainst(t, base, want)
	})
}

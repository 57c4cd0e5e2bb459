// Package delta computes what an archive shares with an older one, its base, and
// puts the archive together again from the base and the rest. FORMAT.md beside
// this file has the bytes.
//
// The references in the base are replaced first, by what the new path calls them
// (see [Mapping]), so that a path that was merely built again differs in nothing.
// What remains is found byte by byte where the sender has the base ([Encode]), by
// the hashes of blocks where only the receiver has it ([Sign], [EncodeAgainst]).
// The receiver's part is the same for both ([Decode]). Nothing here proves that
// the result is right: the receiver compares the NAR hash, and asks for the
// whole path if it differs.
package delta

import (
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/copy-closure/copy-closure/internal/nar"
)

// A Source is an archive that can be read at any offset, such as a [nar.Tree].
// It must not change while it is used. One that has the method
//
//	Files() iter.Seq[nar.Entry]
//
// lets Encode match files by their names.
type Source interface {
	io.ReaderAt
	Size() int64
}

type filesSource interface {
	Files() iter.Seq[nar.Entry]
}

// Options choose how a delta is computed.
type Options struct {
	// Fast spends less time on compressing what is new.
	Fast bool
}

// Stats count the bytes of an archive by where a delta has them from.
type Stats struct {
	Size    int64 // of the archive
	Delta   int64 // written
	Copied  int64 // the same in the base
	Patched int64 // with a similar place in the base
	Literal int64 // without one
}

// A FormatError says that the other side sent what is no delta or signature, or
// one that does not fit the base. An early end wraps io.ErrUnexpectedEOF.
type FormatError struct {
	Err error
}

func (e *FormatError) Error() string { return "malformed delta: " + e.Err.Error() }
func (e *FormatError) Unwrap() error { return e.Err }

// A BaseError says that the base could not be read. The path can still be sent
// whole.
type BaseError struct {
	Err error
}

func (e *BaseError) Error() string { return "delta's base: " + e.Err.Error() }
func (e *BaseError) Unwrap() error { return e.Err }

func malformed(format string, args ...any) error {
	return &FormatError{fmt.Errorf(format, args...)}
}

// early makes the end of a stream that must go on a *FormatError.
func early(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return &FormatError{io.ErrUnexpectedEOF}
	}
	return err
}

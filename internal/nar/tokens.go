package nar

import (
	"encoding/binary"
	"strings"
)

// The words of the format, each as it stands in an archive: length, bytes,
// padding.
const (
	tokMagic      = "\x0d\x00\x00\x00\x00\x00\x00\x00nix-archive-1\x00\x00\x00"
	tokOpen       = "\x01\x00\x00\x00\x00\x00\x00\x00(\x00\x00\x00\x00\x00\x00\x00"
	tokClose      = "\x01\x00\x00\x00\x00\x00\x00\x00)\x00\x00\x00\x00\x00\x00\x00"
	tokType       = "\x04\x00\x00\x00\x00\x00\x00\x00type\x00\x00\x00\x00"
	tokRegular    = "\x07\x00\x00\x00\x00\x00\x00\x00regular\x00"
	tokSymlink    = "\x07\x00\x00\x00\x00\x00\x00\x00symlink\x00"
	tokDirectory  = "\x09\x00\x00\x00\x00\x00\x00\x00directory\x00\x00\x00\x00\x00\x00\x00"
	tokExecutable = "\x0a\x00\x00\x00\x00\x00\x00\x00executable\x00\x00\x00\x00\x00\x00"
	tokEmpty      = "\x00\x00\x00\x00\x00\x00\x00\x00"
	tokContents   = "\x08\x00\x00\x00\x00\x00\x00\x00contents"
	tokTarget     = "\x06\x00\x00\x00\x00\x00\x00\x00target\x00\x00"
	tokEntry      = "\x05\x00\x00\x00\x00\x00\x00\x00entry\x00\x00\x00"
	tokName       = "\x04\x00\x00\x00\x00\x00\x00\x00name\x00\x00\x00\x00"
	tokNode       = "\x04\x00\x00\x00\x00\x00\x00\x00node\x00\x00\x00\x00"
)

// What stands between variable parts.
const (
	archiveStart   = tokMagic
	regularStart   = tokOpen + tokType + tokRegular
	directoryStart = tokOpen + tokType + tokDirectory
	symlinkStart   = tokOpen + tokType + tokSymlink + tokTarget
	entryStart     = tokEntry + tokOpen + tokName
)

// wordSize is the number of bytes of every word up to eight bytes long.
const wordSize = 16

// padding returns the number of zero bytes behind n bytes.
func padding(n int64) int64 { return -n & 7 }

// stringSize returns the number of bytes that a string of n bytes takes.
func stringSize(n int64) int64 { return 8 + n + padding(n) }

func appendString(b []byte, s string) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(len(s)))
	b = append(b, s...)
	return appendPadding(b, int64(len(s)))
}

func appendPadding(b []byte, n int64) []byte {
	return append(b, tokEmpty[:padding(n)]...)
}

// appendEntryStart appends what stands before the node of a directory's entry;
// behind the node stands tokClose.
func appendEntryStart(b []byte, name string) []byte {
	b = append(b, entryStart...)
	b = appendString(b, name)
	return append(b, tokNode...)
}

// appendRegularStart appends what stands before the contents; behind them stand
// padding and tokClose.
func appendRegularStart(b []byte, executable bool, size int64) []byte {
	b = append(b, regularStart...)
	if executable {
		b = append(b, tokExecutable...)
		b = append(b, tokEmpty...)
	}
	b = append(b, tokContents...)
	return binary.LittleEndian.AppendUint64(b, uint64(size))
}

// appendSymlink appends a node up to tokClose.
func appendSymlink(b []byte, target string) []byte {
	return appendString(append(b, symlinkStart...), target)
}

// regularSize returns the number of bytes that a regular file's node takes.
func regularSize(executable bool, size int64) int64 {
	n := int64(len(regularStart)+len(tokContents)+len(tokClose)) + stringSize(size)
	if executable {
		n += int64(len(tokExecutable) + len(tokEmpty))
	}
	return n
}

// symlinkSize returns the number of bytes that a symbolic link's node takes.
func symlinkSize(target int64) int64 {
	return int64(len(symlinkStart)+len(tokClose)) + stringSize(target)
}

// entrySize returns the number of bytes around the node of a directory's entry.
func entrySize(name string) int64 {
	return int64(len(entryStart)+len(tokNode)+len(tokClose)) + stringSize(int64(len(name)))
}

// shown returns the word that the bytes b begin with, for an error message.
func shown(b []byte) string {
	if len(b) >= 8 {
		n := binary.LittleEndian.Uint64(b)
		if b = b[8:]; n < uint64(len(b)) {
			b = b[:n]
		}
	}
	return strings.TrimRight(string(b), "\x00")
}

package substitute

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

func newLZMAReader(r io.Reader) (io.Reader, error) {
	return lzma.ReaderConfig{DictCap: maxXZDictionary}.NewReader(bufio.NewReader(r))
}

// An lzipReader reads the members of an lzip file: each is an LZMA stream between a header
// of six bytes and a trailer of twenty, which is not looked at, as the NAR has a hash.
type lzipReader struct {
	file   *bufio.Reader
	member io.Reader
}

const (
	lzipMagic   = "LZIP\x01"
	lzipTrailer = 20
)

func newLzipReader(r io.Reader) (io.Reader, error) {
	z := &lzipReader{file: bufio.NewReader(r)}
	return z, z.next()
}

// next begins the next member. The error is io.EOF behind the last one.
func (z *lzipReader) next() error {
	var header [len(lzipMagic) + 1]byte
	if _, err := io.ReadFull(z.file, header[:]); err != nil {
		return err
	}
	if !bytes.HasPrefix(header[:], []byte(lzipMagic)) {
		return errors.New("it is no lzip file")
	}
	code := header[len(lzipMagic)]
	dictionary := uint32(1) << (code & 0x1f)
	dictionary -= dictionary / 16 * uint32(code>>5)
	const properties, unknownSize = 93, ^uint64(0) // those that every lzip file has
	head := binary.LittleEndian.AppendUint32([]byte{properties}, dictionary)
	head = binary.LittleEndian.AppendUint64(head, unknownSize)
	var err error
	z.member, err = lzma.ReaderConfig{DictCap: maxXZDictionary}.NewReader(&lzipStream{bytes.NewReader(head), z.file})
	return err
}

// An lzipStream is a made-up header and a stream of which no byte too many may be read.
type lzipStream struct {
	head *bytes.Reader
	*bufio.Reader
}

func (s *lzipStream) Read(p []byte) (int, error) {
	if s.head.Len() > 0 {
		return s.head.Read(p)
	}
	return s.Reader.Read(p)
}

// Read implements io.Reader.
func (z *lzipReader) Read(p []byte) (int, error) {
	for {
		n, err := z.member.Read(p)
		if n > 0 || err != io.EOF {
			return n, err
		}
		if _, err := z.file.Discard(lzipTrailer); err != nil {
			return 0, io.ErrUnexpectedEOF
		}
		if err := z.next(); err != nil {
			return 0, err
		}
	}
}

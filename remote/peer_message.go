package remote

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/wire"
)

// Messages of the peer protocol; PROTOCOL.md says who sends them and when.
const (
	msgAdd    = 1  // channel, number, path info, offset: its NAR follows in the channel, from there on
	msgWant   = 2  // channel, path, NAR hash, NAR size, offset: its NAR shall come in the channel, from there on
	msgData   = 3  // channel, bytes of a NAR
	msgEnd    = 4  // channel: the NAR is complete
	msgAbort  = 5  // channel, text: it will never be
	msgFlush  = 6  // what was added shall be decided
	msgDone   = 7  // number: the path is valid
	msgFail   = 8  // number, text: the path was refused
	msgError  = 9  // text: why the session ends
	msgPacked = 10 // size, zstd stream: messages of that size together
	msgAsk    = 11 // paths: which bases are there?
	msgBases  = 12 // for each of them a base and its NAR hash, or none
	msgPatch  = 13 // channel, number, base, path info: a delta follows in the channel
	msgWhole  = 14 // number: the delta did not do, the whole is wanted
	msgSign   = 15 // channel, base, path info: the base's signature shall come in the channel
	msgKept   = 16 // paths: how much of their NARs is kept from copies that broke off?
	msgSizes  = 17 // for each of them a size and a NAR hash, or 0
	msgAtomic = 18 // number of paths: they become valid together or not at all
	msgCommon = 19 // paths and NAR hashes: which of them are there as well?
	msgThere  = 20 // for each of them 0 or 1
	msgUpdate = 21 // channel, base, path info, 0 or 1: its NAR, or a delta against the base, shall come in the channel
	msgSigned = 22 // channel, path info, 0 or 1: a base's signature follows in the channel; the same shall come
)

// Limits on messages.
const (
	maxData     = 256 << 10 // bytes of a NAR in one message
	maxMessage  = 8 << 20   // bytes of any other
	maxPeerText = 64 << 10  // bytes of a text
	maxChannels = 16
	maxLanes    = 64
)

// A message is a type and a payload. That of msgData belongs to whoever reads the
// message; others lie in the reader's buffer until the following message is read.
type message struct {
	kind    byte
	buf     []byte
	payload payload
}

// A messageReader cuts a stream into messages.
type messageReader struct {
	r        *bufio.Reader
	buf      []byte
	unpacker unpacker
	inner    bytes.Reader // messages that were packed together
}

func newMessageReader(r io.Reader) *messageReader {
	return &messageReader{r: bufio.NewReaderSize(r, 32<<10)}
}

// next returns io.EOF where the stream ends between two messages.
func (m *messageReader) next() (message, error) {
	for {
		if m.inner.Len() > 0 {
			inner, err := m.read(&m.inner)
			if err == nil && inner.kind == msgPacked || errors.Is(err, io.ErrUnexpectedEOF) {
				err = &wire.FormatError{Msg: "it packs something else than whole messages"}
			}
			return inner, err
		}
		outer, err := m.read(m.r)
		if err != nil || outer.kind != msgPacked {
			return outer, err
		}
		unpacked, err := m.unpacker.unpack(outer.payload)
		if err != nil {
			return message{}, err
		}
		m.inner.Reset(unpacked)
	}
}

func (m *messageReader) close() { m.unpacker.close() }

// read reads one message.
func (m *messageReader) read(r interface {
	io.Reader
	io.ByteReader
}) (message, error) {
	kind, err := r.ReadByte()
	if err != nil {
		return message{}, err
	}
	length, err := readUvarint(r)
	if err != nil {
		return message{}, unexpectedEnd(err)
	}
	limit := uint64(maxMessage)
	switch kind {
	case msgData:
		limit = maxData + binary.MaxVarintLen64
	case msgPacked:
		limit = 2 * maxPacked
	}
	if length > limit {
		return message{}, &wire.FormatError{Msg: fmt.Sprintf("it sends a message of kind %d with %d bytes", kind, length)}
	}
	buf := m.buffer(kind, int(length))
	if _, err := io.ReadFull(r, buf); err != nil {
		return message{}, unexpectedEnd(err)
	}
	return message{kind, buf, payload{b: buf}}, nil
}

// buffer returns one for a message.
func (m *messageReader) buffer(kind byte, length int) []byte {
	switch {
	case kind == msgData && length >= gather:
		return dataBuffers.Get().(*dataBuffer)[:length]
	case kind == msgData:
		return make([]byte, length)
	case length > cap(m.buf):
		m.buf = make([]byte, length)
	}
	return m.buf[:length]
}

// dataBuffers are for the longer messages of msgData.
var dataBuffers = sync.Pool{New: func() any { return new(dataBuffer) }}

type dataBuffer [maxData + binary.MaxVarintLen64]byte

// dropData gives back the buffer of msgData.
func dropData(buf []byte) {
	if cap(buf) == len(dataBuffer{}) {
		dataBuffers.Put((*dataBuffer)(buf[:cap(buf)]))
	}
}

func unexpectedEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readUvarint reads an integer in its shortest form.
func readUvarint(r io.ByteReader) (uint64, error) {
	var b [binary.MaxVarintLen64]byte
	for i := range b {
		c, err := r.ReadByte()
		if err != nil {
			return 0, err
		}
		if b[i] = c; c < 0x80 {
			p := payload{b: b[:i+1]}
			n := p.uvarint(1<<64 - 1)
			return n, p.err
		}
	}
	return 0, &wire.FormatError{Msg: "it sends an integer that is too large"}
}

// A payload is decoded from the front. Its first error sticks.
type payload struct {
	b   []byte
	err error
}

func (p *payload) fail(format string, args ...any) {
	if p.err == nil {
		p.err = &wire.FormatError{Msg: fmt.Sprintf(format, args...)}
	}
	p.b = nil
}

func (p *payload) uvarint(limit uint64) uint64 {
	n, size := binary.Uvarint(p.b)
	if size <= 0 || size > 1 && p.b[size-1] == 0 {
		p.fail("it sends a damaged integer")
		return 0
	}
	if n > limit {
		p.fail("it sends %d where at most %d is allowed", n, limit)
		return 0
	}
	p.b = p.b[size:]
	return n
}

// bytes returns the next n bytes, which are the reader's.
func (p *payload) bytes(n int) []byte {
	if n > len(p.b) {
		p.fail("it sends a message that is too short")
		return nil
	}
	b := p.b[:n]
	p.b = p.b[n:]
	return b
}

func (p *payload) text(limit int) string {
	return string(p.bytes(int(p.uvarint(uint64(limit)))))
}

const pathHashSize = 20 // bytes of a store path's hash part

// path reads a path: the bytes of its hash part, and its name.
func (p *payload) path(dir nix.StoreDir) nix.StorePath {
	hash := p.bytes(pathHashSize)
	name := p.text(wire.MaxPath)
	if p.err != nil {
		return nix.StorePath{}
	}
	path, err := dir.ParseBase(nix.EncodeNix32(hash) + "-" + name)
	if err != nil {
		p.fail("%v", err)
	}
	return path
}

func (p *payload) hash() nix.Hash {
	b := p.bytes(32)
	if p.err != nil {
		return nix.Hash{}
	}
	return nix.SHA256Hash([32]byte(b))
}

// pathInfo reads what is to be known of a path.
func (p *payload) pathInfo(dir nix.StoreDir) *nix.PathInfo {
	info := &nix.PathInfo{Path: p.path(dir), NARHash: p.hash()}
	info.NARSize = int64(p.uvarint(1<<63 - 1))
	for range p.count(wire.MaxReferences) {
		info.References = append(info.References, p.path(dir))
	}
	if p.count(1) == 1 {
		info.Deriver = p.path(dir)
	}
	if t := p.uvarint(1<<62 - 1); t != 0 {
		info.Registered = time.Unix(int64(t), 0)
	}
	for range p.count(wire.MaxSignatures) {
		info.Signatures = nix.AppendSignature(info.Signatures, p.text(wire.MaxField))
	}
	info.CA = p.text(serverMaxCA)
	for i := 1; i < len(info.References); i++ {
		if info.References[i-1].Compare(info.References[i]) >= 0 {
			p.fail("it sends references that are not sorted")
		}
	}
	if p.err == nil && info.NARSize == 0 {
		p.fail("it sends a NAR without a size")
	}
	return info
}

// offset reads where in a NAR something begins: before its end.
func (p *payload) offset(size int64) int64 {
	offset := int64(p.uvarint(1<<63 - 1))
	if p.err == nil && offset > 0 && offset >= size {
		p.fail("it goes on at byte %d of a NAR of %d bytes", offset, size)
	}
	return offset
}

// count reads the number of elements of a list. Each takes a byte at least.
func (p *payload) count(limit int) int {
	n := int(p.uvarint(uint64(limit)))
	if n > len(p.b) {
		p.fail("it sends a list that is too short")
		return 0
	}
	return n
}

// end returns the first error, or one if something is left.
func (p *payload) end() error {
	if p.err == nil && len(p.b) > 0 {
		p.fail("it sends a message that is too long")
	}
	return p.err
}

func appendUvarint(b []byte, n uint64) []byte { return binary.AppendUvarint(b, n) }

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendPath(b []byte, p nix.StorePath) []byte {
	hash, _ := nix.DecodeNix32(p.HashPart()) // which every StorePath has
	return appendText(append(b, hash...), p.Name())
}

func appendPathInfo(b []byte, info *nix.PathInfo) []byte {
	b = append(appendPath(b, info.Path), info.NARHash.Bytes()...)
	b = binary.AppendUvarint(b, uint64(info.NARSize))
	b = binary.AppendUvarint(b, uint64(len(info.References)))
	for _, ref := range info.References {
		b = appendPath(b, ref)
	}
	if info.Deriver.IsZero() {
		b = append(b, 0)
	} else {
		b = appendPath(append(b, 1), info.Deriver)
	}
	b = binary.AppendUvarint(b, unixTime(info.Registered))
	b = binary.AppendUvarint(b, uint64(len(info.Signatures)))
	for _, sig := range info.Signatures {
		b = appendText(b, sig)
	}
	return appendText(b, info.CA)
}

package remote

import (
	"fmt"
	"math"
)

// A Room is what is free on the file system of a store.
type Room struct {
	Bytes      int64
	Files      int64  // that can still be made; 0: the file system does not count them
	FileSystem string // such as ext2/ext3 or zfs
}

// roomWord begins the line of the start script that tells it.
const roomWord = "room"

// parseRoom reads free blocks, their size, free inodes and the file system's type. It
// returns nil for anything else.
func parseRoom(figures string) *Room {
	var blocks, size int64
	var r Room
	if n, err := fmt.Sscan(figures, &blocks, &size, &r.Files, &r.FileSystem); n != 4 || err != nil {
		return nil
	}
	if blocks < 0 || size <= 0 || r.Files < 0 || blocks > math.MaxInt64/size {
		return nil
	}
	r.Bytes = blocks * size
	return &r
}

// Room is what the far end said is free there when it started; nil where it did not
// say. It is known after the first answer.
func (s *sessions) Room() *Room {
	select {
	case <-s.first.greeted:
		if room := s.first.prelude.room; room != nil {
			return room
		}
		return s.first.prelude.offer.room
	default:
		return nil
	}
}

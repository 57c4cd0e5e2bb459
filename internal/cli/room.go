package cli

import (
	"context"
	"fmt"
	"math"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/ui"
	"github.com/copy-closure/copy-closure/remote"
	"github.com/copy-closure/copy-closure/transport"
)

// Files take whole blocks, and a path at least one more than its contents.
const fileBlock = 4 << 10

// worthAsking is how much must be sent before a far end that did not tell its room is
// asked once more, which takes some round trips.
const worthAsking = 64 << 20

// checkRoom refuses a copy that cannot fit at its destination, before anything is
// sent.
func (r *copyRun) checkRoom(ctx context.Context, plan *closure.Plan, e ends) error {
	if len(plan.Send) == 0 || r.ignoreSpace {
		return nil
	}
	need := spaceFor(plan.Send)
	var room *remote.Room
	if r.pull {
		room = e.local.room()
	} else {
		room = e.far.room(ctx, need)
	}
	if room == nil || room.Bytes >= need && (room.Files == 0 || room.Files >= int64(len(plan.Send))) {
		return nil
	}
	err := &noRoomError{where: r.daemonPlace(), need: need, paths: len(plan.Send), room: *room}
	if room.FileSystem == "zfs" || room.FileSystem == "btrfs" {
		r.log.Warn(err.Error() + "; this file system compresses or shares, so it may fit")
		return nil
	}
	return err
}

// spaceFor is about the space that paths take.
func spaceFor(infos []*nix.PathInfo) (need int64) {
	for _, info := range infos {
		need += (info.NARSize+fileBlock-1)/fileBlock*fileBlock + fileBlock
	}
	return need
}

// A noRoomError says that a copy cannot fit. It is nix.ErrNoSpace.
type noRoomError struct {
	where string
	need  int64
	paths int
	room  remote.Room
}

func (e *noRoomError) Error() string {
	files := ""
	if e.room.Files > 0 && e.room.Files < int64(e.paths) {
		files = fmt.Sprintf(" and %s files", ui.Count(int(e.room.Files)))
	}
	return fmt.Sprintf("the store %s has no room: %s takes about %s, and %s%s are free; delete garbage there, or try it all the same with --ignore-space",
		e.where, ui.Paths(e.paths), ui.Bytes(e.need), ui.Bytes(e.room.Bytes), files)
}

func (e *noRoomError) Unwrap() error { return nix.ErrNoSpace }

// room is what is free at the far end: nil if that cannot be known.
func (f *farEnd) room(ctx context.Context, need int64) *remote.Room {
	if room := f.Room(); room != nil || need < worthAsking || f.Forced() {
		return room
	}
	f.execs += 4 // to open SFTP, and for the answer
	files, err := transport.OpenSFTP(ctx, f.conn)
	if err != nil {
		return nil
	}
	defer files.Close()
	space, err := files.StatVFS(string(storeDir()))
	if err != nil {
		return nil
	}
	return &remote.Room{Bytes: int64(min(space.Bavail*space.Frsize, math.MaxInt64)), Files: int64(min(space.Favail, math.MaxInt64))}
}

// room is what is free at this end.
func (l *localEnd) room() *remote.Room {
	if l.store == nil {
		return nil
	}
	bytes, files, err := l.store.FreeSpace()
	if err != nil {
		return nil
	}
	room := &remote.Room{Bytes: int64(min(bytes, math.MaxInt64)), Files: int64(min(files, math.MaxInt64))}
	if l.store.SharesSpace() {
		room.FileSystem = "btrfs"
	}
	return room
}

package remote

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A meeting takes in the further sessions of a client: their processes hand over the
// streams that they were started with, through a socket whose name only those can know
// who know the token.
type meeting struct {
	token  []byte
	socket *net.UnixListener
}

// joinTime is how long a process has to hand its streams over.
const joinTime = 5 * time.Second

// NewMeeting returns the meeting of a server with the further sessions of its client.
func NewMeeting() (Meeting, error) {
	m := &meeting{token: make([]byte, tokenSize)}
	rand.Read(m.token)
	var err error
	m.socket, err = net.ListenUnix("unix", meetingPlace(m.token))
	if err != nil {
		return nil, err
	}
	return m, nil
}

// meetingPlace is a name that is no file.
func meetingPlace(token []byte) *net.UnixAddr {
	sum := sha256.Sum256(token)
	return &net.UnixAddr{Net: "unix", Name: "@copy-closure-" + hex.EncodeToString(sum[:16])}
}

// Token implements Meeting.
func (m *meeting) Token() []byte { return m.token }

// Close implements Meeting.
func (m *meeting) Close() error { return m.socket.Close() }

// Accept implements Meeting.
func (m *meeting) Accept() (io.ReadWriteCloser, error) {
	for {
		conn, err := m.socket.AcceptUnix()
		if err != nil {
			return nil, err
		}
		stream, err := m.takeOver(conn)
		if err == nil {
			return stream, nil
		}
		conn.Close()
	}
}

// takeOver receives the streams of another process of this user.
func (m *meeting) takeOver(conn *net.UnixConn) (*handedOver, error) {
	if err := checkUser(conn); err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(joinTime))
	token := make([]byte, tokenSize)
	rights := make([]byte, unix.CmsgSpace(2*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(token, rights)
	if err != nil {
		return nil, err
	}
	files, err := handedFiles(rights[:oobn])
	if err != nil {
		return nil, err
	}
	if n != len(token) || subtle.ConstantTimeCompare(token, m.token) != 1 {
		return nil, errors.Join(errors.New("the token is wrong"), files[0].Close(), files[1].Close())
	}
	conn.SetDeadline(time.Time{})
	return &handedOver{stdio{files[0], files[1]}, conn}, nil
}

// checkUser refuses processes of other users.
func checkUser(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		peer, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return err
	}
	if int(peer.Uid) != os.Geteuid() {
		return fmt.Errorf("the process at the other end belongs to user %d", peer.Uid)
	}
	return nil
}

// handedFiles makes files of the two descriptors in a control message.
func handedFiles(rights []byte) (files [2]*os.File, err error) {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return files, err
	}
	var fds []int
	for _, m := range messages {
		some, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		fds = append(fds, some...)
	}
	if len(fds) != 2 {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return files, fmt.Errorf("%d streams were handed over, not 2", len(fds))
	}
	for i, fd := range fds {
		unix.CloseOnExec(fd)
		if err := unix.SetNonblock(fd, true); err != nil {
			return files, err
		}
		files[i] = os.NewFile(uintptr(fd), "stream of another session")
	}
	return files, nil
}

// A handedOver is the stream of another process, which ends with it.
type handedOver struct {
	stdio
	conn *net.UnixConn
}

// Close lets the process end.
func (h *handedOver) Close() error { return errors.Join(h.stdio.Close(), h.conn.Close()) }

// JoinLane hands this process's streams to the one that serves the first session of
// the client, and waits until that is done with them.
func JoinLane(in, out *os.File) error {
	widen(in, out)
	token, err := readToken(in)
	if err != nil {
		return err
	}
	conn, err := net.DialUnix("unix", nil, meetingPlace(token))
	if err != nil {
		return fmt.Errorf("join a further session to the first: %w", err)
	}
	defer conn.Close()
	if err := checkUser(conn); err != nil {
		return err
	}
	rights := unix.UnixRights(int(in.Fd()), int(out.Fd()))
	if _, _, err := conn.WriteMsgUnix(token, rights, nil); err != nil {
		return fmt.Errorf("join a further session to the first: %w", err)
	}
	_, err = io.Copy(io.Discard, conn)
	return err
}

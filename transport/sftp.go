package transport

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	"github.com/pkg/sftp"
)

// ErrNoSFTP is found by errors.Is in the error of OpenSFTP where the host is reached
// and has no SFTP for this user.
var ErrNoSFTP = errors.New("no SFTP there")

// Without many requests under way each one waits a round trip for the one before:
// 0.3 MiB/s at 100 ms. What fills a channel's window of 2 MiB is enough. Servers that
// name their limits are OpenSSH since 8.5, which takes packets of 256 KiB; all take
// those of 32 KiB, the default of pkg/sftp.
const (
	sftpGreeting     = 20 * time.Second // for the first answer
	sftpPacket       = 255 << 10
	sftpRequests     = 16 // of this size
	sftpSmallRequest = 64 // of the default size
)

// An SFTP is the files of another machine. Its methods may be called at the same
// time. Names are absolute, or relative to the user's home. Errors are
// fs.ErrNotExist and fs.ErrPermission where the host says so.
type SFTP struct {
	client  *sftp.Client
	session *Session
}

// OpenSFTP starts the SFTP subsystem. When the context is cancelled, all methods
// return the cause.
func OpenSFTP(ctx context.Context, conn Conn) (*SFTP, error) {
	session, err := conn.Subsystem(ctx, "sftp")
	if err != nil {
		return nil, noSFTP(ctx, err)
	}
	// A program that is no SFTP server may wait for us as we do for it.
	watch := time.AfterFunc(sftpGreeting, func() {
		session.abort(fmt.Errorf("no greeting within %v", sftpGreeting))
	})
	defer watch.Stop()
	client, err := sftp.NewClientPipe(session, halfCloser{session},
		sftp.UseConcurrentWrites(true), sftp.MaxConcurrentRequestsPerFile(sftpSmallRequest))
	if err != nil {
		if exit := session.Close(); exit != nil {
			err = exit
		}
		return nil, noSFTP(ctx, err)
	}
	s := &SFTP{client, session}
	if _, named := client.HasExtension("limits@openssh.com"); named {
		err = errors.Join(sftp.MaxPacketUnchecked(sftpPacket)(client), sftp.MaxConcurrentRequestsPerFile(sftpRequests)(client))
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// noSFTP tells a host without SFTP from one that is gone.
func noSFTP(ctx context.Context, err error) error {
	_, lost := errors.AsType[*LostError](err)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case lost || errors.Is(err, ErrSessionRefused):
		return err
	}
	return fmt.Errorf("%w: %w", ErrNoSFTP, err)
}

// A halfCloser closes a session's input only: its output is still read.
type halfCloser struct{ *Session }

func (h halfCloser) Close() error { return h.CloseWrite() }

// failed says what was done to which file, and why it failed where the session did.
func (s *SFTP) failed(what, name string, err error) error {
	if err == nil {
		return nil
	}
	if cause := s.session.cause.Load(); cause != nil {
		err = *cause
	} else if errors.Is(err, sftp.ErrSSHFxConnectionLost) && s.session.endsWithin(lastWords) && s.session.exit != nil {
		err = s.session.exit
	}
	return &fs.PathError{Op: what, Path: name, Err: err}
}

// Open reads a file from an offset on. The reader fetches ahead.
func (s *SFTP) Open(name string, offset int64) (io.ReadCloser, error) {
	f, err := s.client.Open(name)
	if err != nil {
		return nil, s.failed("open", name, err)
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		f.Close()
		return nil, s.failed("seek", name, err)
	}
	r, w := io.Pipe()
	file := &sftpReader{PipeReader: r, file: f, done: make(chan struct{})}
	go func() {
		defer close(file.done)
		_, err := f.WriteTo(w)
		w.CloseWithError(s.failed("read", name, err))
	}()
	return file, nil
}

// An sftpReader is a file that is being fetched.
type sftpReader struct {
	*io.PipeReader
	file *sftp.File
	done chan struct{}
}

func (r *sftpReader) Close() error {
	r.PipeReader.Close()
	<-r.done
	return r.file.Close()
}

// WriteFile makes a file of all that r has, or replaces it: under its name there is
// the old file or the whole new one. It does not change the file's mode where perm
// is 0.
func (s *SFTP) WriteFile(name string, r io.Reader, perm fs.FileMode) error {
	dir, base := path.Split(name)
	temporary := dir + "." + base + "." + rand.Text()
	if err := s.create(temporary, r, perm); err != nil {
		return s.failed("write", name, err)
	}
	if err := s.rename(temporary, name); err != nil {
		s.client.Remove(temporary)
		return s.failed("write", name, err)
	}
	return nil
}

// CreateFile makes a file, which must not exist, of all that r has. It takes the fewest
// round trips.
func (s *SFTP) CreateFile(name string, r io.Reader) error {
	return s.failed("write", name, s.create(name, r, 0))
}

// create leaves nothing behind when it fails.
func (s *SFTP) create(name string, r io.Reader, perm fs.FileMode) (err error) {
	f, err := s.client.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.client.Remove(name)
		}
	}()
	if perm != 0 {
		err = f.Chmod(perm)
	}
	if err == nil {
		_, err = f.ReadFromWithConcurrency(r, 0)
	}
	err = errors.Join(err, f.Close())
	return err
}

// rename replaces a file at once where the host can.
func (s *SFTP) rename(from, to string) error {
	if _, able := s.client.HasExtension("posix-rename@openssh.com"); able {
		return s.client.PosixRename(from, to)
	}
	if err := s.client.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.client.Rename(from, to)
}

// ReadDir lists a directory, in no order.
func (s *SFTP) ReadDir(name string) ([]fs.FileInfo, error) {
	list, err := s.client.ReadDir(name)
	return list, s.failed("read", name, err)
}

// MkdirAll makes a directory and its parents where they are missing.
func (s *SFTP) MkdirAll(name string) error {
	return s.failed("make", name, s.mkdirAll(path.Clean(name)))
}

func (s *SFTP) mkdirAll(name string) error {
	err := s.client.Mkdir(name)
	if parent := path.Dir(name); errors.Is(err, fs.ErrNotExist) && parent != name {
		if err := s.mkdirAll(parent); err != nil {
			return err
		}
		err = s.client.Mkdir(name)
	}
	if err == nil {
		return s.client.Chmod(name, 0o755) // the umask there may have left less
	}
	if info, statErr := s.client.Stat(name); statErr == nil && info.IsDir() {
		return nil
	}
	return err
}

// Remove deletes a file or an empty directory.
func (s *SFTP) Remove(name string) error { return s.failed("remove", name, s.client.Remove(name)) }

// Stat follows links.
func (s *SFTP) Stat(name string) (fs.FileInfo, error) {
	info, err := s.client.Stat(name)
	return info, s.failed("look at", name, err)
}

// StatVFS tells about the file system that holds a file. Its error is
// errors.ErrUnsupported where the host cannot tell.
func (s *SFTP) StatVFS(name string) (*sftp.StatVFS, error) {
	if _, able := s.client.HasExtension("statvfs@openssh.com"); !able {
		return nil, s.failed("space of", name, errors.ErrUnsupported)
	}
	space, err := s.client.StatVFS(name)
	return space, s.failed("space of", name, err)
}

// Close ends the session. Files that are still open are of no more use.
func (s *SFTP) Close() error {
	err := s.session.Close()
	s.client.Close() // waits for its reader, which has come to the end
	return err
}

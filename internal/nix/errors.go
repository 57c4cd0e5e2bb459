package nix

import (
	"errors"
	"fmt"
	"syscall"
)

// Reasons for which a path is not copied. Every store wraps them, so that callers
// can tell what happened without knowing which store it was.
var (
	ErrNotValid   = errors.New("path is not valid")          // the store does not hold it
	ErrNotTrusted = errors.New("path is not trusted")        // neither signed by a trusted key nor content-addressed
	ErrDamaged    = errors.New("content is damaged")         // it is not what its path info promises
	ErrNoSpace    = errors.New("no space left in the store") // disk full, quota or inodes used up
)

// CheckNoSpace returns an error of a write to the destination so that it wraps ErrNoSpace
// if that is full. Errors of other files, such as logs and temporary files, do not go
// through here.
func CheckNoSpace(err error) error {
	full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
	if full && !errors.Is(err, ErrNoSpace) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// A HashMismatchError says that content is not what was promised. It is ErrDamaged.
type HashMismatchError struct {
	Got, Want Hash
}

func (e *HashMismatchError) Error() string {
	return fmt.Sprintf("NAR hash is %s, expected %s", e.Got, e.Want)
}

// Is makes the error one of damaged content.
func (e *HashMismatchError) Is(target error) bool { return target == ErrDamaged }

// A SizeMismatchError says that content has not the promised length. It is ErrDamaged.
type SizeMismatchError struct {
	Got, Want int64 // bytes of the NAR
}

func (e *SizeMismatchError) Error() string {
	return fmt.Sprintf("NAR has %d bytes, expected %d", e.Got, e.Want)
}

// Is makes the error one of damaged content.
func (e *SizeMismatchError) Is(target error) bool { return target == ErrDamaged }

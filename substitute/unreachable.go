package substitute

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strings"

	"github.com/minio/minio-go/v7"
)

// IsUnreachable reports whether err means that the server of a cache was not reached,
// did not prove who it is, wants to know who we are, or is out of order.
func IsUnreachable(err error) bool {
	if status, ok := errors.AsType[*StatusError](err); ok {
		return failsAll(status.Code)
	}
	if answer, ok := errors.AsType[minio.ErrorResponse](err); ok {
		return failsAll(answer.StatusCode)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return strings.HasPrefix(op.Net, "tcp") && op.Op != "listen" && op.Op != "accept"
	}
	_, name := errors.AsType[*net.DNSError](err)
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	timeout, isNet := errors.AsType[net.Error](err)
	return name || certificate || isNet && timeout.Timeout()
}

// failsAll reports whether a status is about the server or the user, whatever is asked.
func failsAll(status int) bool {
	switch status {
	case http.StatusUnauthorized, http.StatusProxyAuthRequired, http.StatusTooManyRequests, http.StatusRequestTimeout:
		return true
	}
	return status >= 500
}

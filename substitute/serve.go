package substitute

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Limits on clients before and between their requests.
const (
	headerTime = 10 * time.Second // to send a request's header
	idleTime   = time.Minute      // between two requests
	maxHeader  = 16 << 10         // bytes
)

// Serve answers requests that come in by l until ctx ends. Then it takes no more, lets
// those under way go on for at most grace, and returns nil, or an error if it had to
// break some off. It closes l. config makes it HTTPS; nil: HTTP.
func (s *Server) Serve(ctx context.Context, l net.Listener, config *tls.Config, grace time.Duration) error {
	server := &http.Server{
		Handler:           s,
		TLSConfig:         config,
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.options.Logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	var stopping sync.WaitGroup
	var stopped error
	served := make(chan struct{})
	stopping.Go(func() {
		select {
		case <-ctx.Done():
			stopped = shutDown(ctx, server, grace)
		case <-served:
		}
	})
	var err error
	if config != nil {
		err = server.ServeTLS(l, "", "")
	} else {
		err = server.Serve(l)
	}
	close(served)
	stopping.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return stopped
	}
	return errors.Join(fmt.Errorf("serve on %s: %w", l.Addr(), err), server.Close())
}

func shutDown(ctx context.Context, server *http.Server, grace time.Duration) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	err := server.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("some requests were still under way after %v and were broken off", grace), server.Close())
	}
	return err
}

// Certificate returns a TLS configuration with a certificate from files, which are
// read again for each connection: a renewed certificate needs no restart. While the
// files cannot be read the last good one is used.
func Certificate(certFile, keyFile string) (*tls.Config, error) {
	last, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("TLS certificate: %w", err)
	}
	var mu sync.Mutex
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			mu.Lock()
			defer mu.Unlock()
			if fresh, err := tls.LoadX509KeyPair(certFile, keyFile); err == nil {
				last = fresh
			}
			current := last
			return &current, nil
		},
	}, nil
}

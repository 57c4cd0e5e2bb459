package e2e_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

// cmdS3Server starts an S3 server with one empty bucket, $s3, in REGION or us-east-1. It
// lets everybody read, and wants all else signed, by "key" or by "machine". As a proxy it
// is bucket.s3.test as well.
func cmdS3Server(s script, args []string) error {
	guard := &s3Guard{region: "us-east-1", identities: map[string]s3Identity{
		"key":     {secret: "secret"},
		"machine": {secret: "it/is+secret=", token: "for a/while+=="},
	}}
	if len(args) > 0 {
		guard.region = args[0]
	}
	backend := s3mem.New()
	if err := backend.CreateBucket("bucket"); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	guard.Handler = gofakes3.New(backend, gofakes3.WithHostBucketBase(s3Name)).Server()
	server := &http.Server{Handler: guard}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l)
	}()
	s.Defer(func() {
		server.Close()
		<-done
	})
	s.Setenv("s3", "s3://bucket?endpoint=http://"+l.Addr().String())
	s.Setenv("s3http", "http://"+l.Addr().String()+"/bucket")
	s.Setenv("s3host", "http://"+l.Addr().String())
	s.Setenv("AWS_ACCESS_KEY_ID", "key")
	s.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	return nil
}

// nginxConf serves a directory; files can be put below /made, and only read below /read.
const nginxConf = `daemon off;
pid nginx.pid;
error_log stderr;
user root;
events {}
http {
  access_log nginx-access.log;
  client_body_temp_path nginx-body;
  proxy_temp_path nginx-proxy;
  fastcgi_temp_path nginx-fastcgi;
  uwsgi_temp_path nginx-uwsgi;
  scgi_temp_path nginx-scgi;
  client_max_body_size 0;
  server {
    listen 127.0.0.1:PORT;
    location /made/ { root .; dav_methods PUT DELETE; create_full_put_path on; }
    location /read/ { alias ./made/; }
  }
}
`

// cmdNginx starts nginx on the script's directory, at $http.
func cmdNginx(s script, _ []string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	_, port, _ := net.SplitHostPort(addr)
	conf := filepath.Join(s.MkAbs("."), "nginx.conf")
	text := strings.NewReplacer("PORT", port, "root .;", "root "+s.MkAbs(".")+";", "alias ./", "alias "+s.MkAbs(".")+"/").Replace(nginxConf)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(s.ctx)
	cmd := exec.CommandContext(ctx, "nginx", "-p", s.MkAbs("."), "-c", conf)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		stop()
		return err
	}
	s.Defer(func() {
		stop()
		cmd.Wait()
	})
	s.Setenv("http", "http://"+addr)
	return waitForServer(ctx, addr)
}

// waitForServer waits until somebody listens.
func waitForServer(ctx context.Context, addr string) error {
	for range 500 {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return fmt.Errorf("nobody listens at %s", addr)
}

package transport

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// ticket reports whether there is a Kerberos ticket. Distributions switch
// GSSAPIAuthentication on for everybody; without a ticket it does nothing.
func ticket(ctx context.Context) bool {
	if klist, err := exec.LookPath("klist"); err == nil {
		return exec.CommandContext(ctx, klist, "-s").Run() == nil
	}
	cache := os.Getenv("KRB5CCNAME")
	if cache == "" {
		cache = fmt.Sprintf("/tmp/krb5cc_%d", os.Getuid())
	}
	kind, name, typed := strings.Cut(cache, ":")
	if typed && kind != "FILE" {
		return true // in a place that only Kerberos can look into
	}
	if typed {
		cache = name
	}
	_, err := os.Stat(cache)
	return err == nil
}

// liveMaster reports whether the user has an ssh running that shares its connection
// with others to the same host.
func (r *resolver) liveMaster(ctx context.Context, q query, s settings) bool {
	if r.program == "" || s.off("controlpath") {
		return false
	}
	argv := append(q.argv(), "-O", "check", "--", q.dest.Host)
	return exec.CommandContext(ctx, r.program, argv...).Run() == nil
}

// reasonForOpenSSH completes what newHostConfig found with what must be tried.
func (r *resolver) reasonForOpenSSH(ctx context.Context, q query, s settings) string {
	options, err := parseFlags(q.options)
	if err != nil {
		return err.Error()
	}
	for _, f := range options {
		if flags[f.letter].use == flagOpenSSH {
			return fmt.Sprintf("the ssh option -%c is given", f.letter)
		}
	}
	for _, name := range []string{"GSSAPIAuthentication", "GSSAPIKeyExchange"} {
		if s.yes(strings.ToLower(name)) && ticket(ctx) {
			return name + " is on and there is a Kerberos ticket"
		}
	}
	if r.liveMaster(ctx, q, s) {
		return "a master connection is running (ControlPath " + s.first("controlpath") + ")"
	}
	return ""
}

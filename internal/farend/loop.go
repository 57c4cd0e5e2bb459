package farend

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// startsVariable records in the environment which process of ours led to this one:
// "PID DEPTH PROGRAM". DEPTH counts our programs in a chain of children. PROGRAM is what
// the last of them has taken for a program of Nix. PID is the process that became PROGRAM,
// as exec keeps it, or 0.
const startsVariable = "COPY_CLOSURE_STARTS"

// maxDepth is more than the programs of a copy need: a client, its far end, and what
// their hooks start.
const maxDepth = 8

// CheckLoop must be called when a program of ours starts. It returns an error if the
// program has executed itself, as happens behind a file that LookPath cannot recognize,
// or if it has too many ancestors of its kind.
func CheckLoop() error {
	pid, depth, program := parseStarts(os.Getenv(startsVariable))
	if pid == os.Getpid() {
		return fmt.Errorf("%s is or starts copy-closure, which would start it again without end; put Nix's own program there, or name a store with --store /DIR", program)
	}
	if depth >= maxDepth {
		if program != "" {
			program = " by way of " + program
		}
		return fmt.Errorf("copy-closure was started by itself %d times%s; put Nix's own programs, ssh and sudo before wrappers of copy-closure in PATH", depth, program)
	}
	return setStarts(0, depth+1, program)
}

// markExec records that this process becomes program.
func markExec(program string) error {
	_, depth, _ := parseStarts(os.Getenv(startsVariable))
	return setStarts(os.Getpid(), depth, program)
}

func setStarts(pid, depth int, program string) error {
	return os.Setenv(startsVariable, fmt.Sprintf("%d %d %s", pid, depth, program))
}

// parseStarts returns zeros for what it cannot read.
func parseStarts(value string) (pid, depth int, program string) {
	first, rest, _ := strings.Cut(value, " ")
	second, program, _ := strings.Cut(rest, " ")
	pid, _ = strconv.Atoi(first)
	depth, _ = strconv.Atoi(second)
	return pid, depth, program
}

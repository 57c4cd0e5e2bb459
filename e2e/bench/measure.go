package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// measureVerb makes the benchmark a wrapper around one process of ours:
//
//	bench measure-process FILE PROGRAM ARG…
//
// It runs the program on its own standard streams, appends the peak of its
// resident memory in KiB as a line to FILE, and exits as the program did.
const measureVerb = "measure-process"

// memoryPoll is how often a process is looked at. Linux keeps the peak itself
// but not beyond the end of the process. To look takes time that the peers do not
// lose: at every 5 ms it was 3 % of both processors. What wait4 reports instead
// (ru_maxrss) is too much: it includes what the process's own children used,
// and the peak of the image that forked it.
const memoryPoll = 50 * time.Millisecond

func measure(file string, line []string) int {
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 127
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	peak := 0
	for {
		peak = max(peak, residentPeak(cmd.Process.Pid))
		select {
		case err := <-ended:
			if note := appendLine(file, strconv.Itoa(peak)); note != nil {
				fmt.Fprintln(os.Stderr, "bench:", note)
			}
			exit := (*exec.ExitError)(nil)
			if err != nil && !errors.As(err, &exit) {
				fmt.Fprintln(os.Stderr, "bench:", err)
			}
			return cmd.ProcessState.ExitCode()
		case <-time.After(memoryPoll):
		}
	}
}

// residentPeak returns a process's peak so far in KiB, or 0 when it is gone.
func residentPeak(pid int) int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(status, []byte("VmHWM:"))
	number, _, _ := bytes.Cut(bytes.TrimSpace(rest), []byte(" "))
	kib, _ := strconv.Atoi(string(number))
	return kib
}

func appendLine(file, line string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	return errors.Join(err, f.Close())
}

// readPeak returns the largest number in the file in MiB, and forgets it.
func readPeak(file string) (float64, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	peak := 0
	for _, field := range bytes.Fields(data) {
		kib, err := strconv.Atoi(string(field))
		if err != nil {
			return 0, err
		}
		peak = max(peak, kib)
	}
	return float64(peak) / 1024, os.Remove(file)
}

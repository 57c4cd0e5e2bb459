package e2e_test

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// cmdAgent builds the program that is uploaded to a kind of Linux machine, and checks
// that it is for that kind and needs no libraries there.
func cmdAgent(s script, args []string) error {
	if err := need(args, 2, "agent ARCHITECTURE FILE"); err != nil {
		return err
	}
	file := s.MkAbs(args[1])
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, module+"/cmd/copy-closure-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+args[0])
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	program, err := elf.Open(file)
	if err != nil {
		return err
	}
	defer program.Close()
	if program.Machine != machines[args[0]] {
		return fmt.Errorf("the program is for %v", program.Machine)
	}
	for _, part := range program.Progs {
		if part.Type == elf.PT_INTERP || part.Type == elf.PT_DYNAMIC {
			return fmt.Errorf("the program is not static: it has a %s", strings.TrimPrefix(part.Type.String(), "PT_"))
		}
	}
	return nil
}

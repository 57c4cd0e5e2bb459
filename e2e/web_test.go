package e2e_test

import (
	"flag"
	"fmt"
	"strconv"

	"github.com/copy-closure/copy-closure/e2e/harness"
)

// cmdWeb starts a web server and puts its address into the variable NAME.
func cmdWeb(s script, args []string) error {
	var faults harness.WebFaults
	flags := flag.NewFlagSet("web", flag.ContinueOnError)
	flags.BoolVar(&faults.BreakNARs, "break", false, "")
	flags.BoolVar(&faults.LoseNARs, "lose", false, "")
	flags.BoolVar(&faults.FlipNARs, "flip", false, "")
	flags.BoolVar(&faults.Page, "page", false, "")
	flags.BoolVar(&faults.Hang, "hang", false, "")
	flags.IntVar(&faults.Rate, "rate", 0, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := need(flags.Args(), 2, "web [-break] [-lose] [-flip] [-page] [-hang] [-rate BYTES/S] NAME DIR"); err != nil {
		return err
	}
	server, err := harness.ServeFiles(s.ctx, s.MkAbs(flags.Arg(1)), faults)
	if err != nil {
		return err
	}
	s.Setenv(flags.Arg(0), server.URL)
	s.webs[flags.Arg(0)] = server
	return nil
}

// cmdServed checks how many files a web server has sent.
func cmdServed(s script, args []string) error {
	if err := need(args, 3, "served NAME SUFFIX N"); err != nil {
		return err
	}
	server := s.webs[args[0]]
	if server == nil {
		return fmt.Errorf("there is no web server %s", args[0])
	}
	want, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	if got := server.Served(args[1]); got != want {
		return fmt.Errorf("%s served %d files whose names end with %s, want %d", args[0], got, args[1], want)
	}
	return nil
}

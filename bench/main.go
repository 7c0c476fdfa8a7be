// Command bench measures what judging connections costs, side by side: a node
// without any agent, rules written by hand, a queue that accepts everything, and
// Sluice with one cache after the other, on real packets between network namespaces.
// README.md says how to read what it prints.
//
// The contenders stand ready at the same time, each on a node of its own with its
// own pods, and take turns: A B C A B C. So a machine that is slower for a minute is
// slower for all, and a ratio within a round means something even where the figures
// themselves do not.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// env is what the program may know of its surroundings. The tests run it with
// another one.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	// self is the path of this program, which it starts in pods.
	self     string
	terminal bool // stderr is one
}

// Exit statuses, those of sluice, and the one of a shell for an interrupt.
const (
	exitWorse       = 1 // something is slower than before
	exitFailed      = 2 // it could not do what was asked
	exitInterrupted = 130
)

// errWorse says that a comparison found something that got worse. It has said what.
var errWorse = errors.New("something got worse")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	e := env{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, terminal: isTerminal(os.Stderr)}
	var status int
	var err error
	if e.self, err = os.Executable(); err != nil {
		fmt.Fprintf(os.Stderr, "bench: find this program: %v\n", err)
		status = exitFailed
	} else {
		status = run(ctx, e, os.Args[1:])
	}
	stop()
	os.Exit(status)
}

// run is the whole program as a function of its surroundings.
func run(ctx context.Context, e env, args []string) (status int) {
	root := rootCommand(e)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errWorse):
		return exitWorse
	case ctx.Err() != nil:
		fmt.Fprintln(e.stderr, "bench: interrupted; everything is cleaned up")
		return exitInterrupted
	}
	fmt.Fprintf(e.stderr, "bench: %v\n", err)
	return exitFailed
}

func rootCommand(e env) *cobra.Command {
	root := &cobra.Command{
		Use:   "bench",
		Short: "Measure what judging connections costs",
		// Errors are printed once, by run, and not among a page of help.
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	root.AddCommand(runCommand(e), compareCommand(e), reportCommand(e), serverCommand(e), clientCommand(e), obeyCommand(e), acceptCommand(e))
	return root
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// Command bench measures what it costs to enforce policies on connections. It compares a node
// without an agent, rules written by hand, a queue that accepts everything, and Sluice with
// each of its caches, on real packets between network namespaces. README.md explains the
// output.
//
// All contenders are set up at the same time, each on a node of its own with its own pods.
// Their measurements take turns, round by round. If the machine is slower for a minute, it is
// slower for all contenders, so a ratio within a round is reliable even if the figures are
// not.
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

// env is the part of the environment that the program uses. Tests provide their own.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	// self is the path of this program, which it starts in pods.
	self     string
	terminal bool // stderr is a terminal
}

// Exit statuses. They are the same as those of sluice. After an interrupt, the status is 130,
// as in a shell.
const (
	exitWorse       = 1 // a figure got worse
	exitFailed      = 2 // the command failed
	exitInterrupted = 130
)

// errWorse means that a comparison has found and printed a figure that got worse.
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

// run runs the program in an environment, and returns its exit status.
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
		Short: "Measure what it costs to enforce policies",
		// run prints errors once, without the help.
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	root.AddCommand(runCommand(e), compareCommand(e), reportCommand(e), serverCommand(e), clientCommand(e), ordersCommand(e), acceptCommand(e))
	return root
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

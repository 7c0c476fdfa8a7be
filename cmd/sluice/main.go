// Command sluice enforces Kubernetes NetworkPolicy on a node, and answers what
// policies allow without one.
//
// This package is a table of subcommands and their wiring; what they do lives in
// the packages they import.
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

// env is what a command may know of its surroundings. The tests run the real
// commands with another one.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
}

// exitError ends the command with a status of its own. Its error, if there is
// one, is printed; without, the command has said all there is to say.
type exitError struct {
	status int
	err    error
}

func (e exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e exitError) Unwrap() error { return e.err }

// Exit statuses, the same for every command.
const (
	exitFindings = 1 // it ran, and what it found is not as wanted
	exitFailed   = 2 // it could not do what was asked
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, env{os.Stdin, os.Stdout, os.Stderr, os.Getenv}, os.Args[1:])
	stop()
	os.Exit(status)
}

// run is the whole program as a function of its surroundings.
func run(ctx context.Context, e env, args []string) (status int) {
	root := rootCommand(e)
	root.SetArgs(args)
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	exit := exitError{status: exitFailed, err: err}
	errors.As(err, &exit)
	if exit.err != nil {
		fmt.Fprintf(e.stderr, "sluice: %v\n", err)
	}
	return exit.status
}

// The help lists the commands in the order of the table, which is the one in which
// people come to need them.
func init() { cobra.EnableCommandSorting = false }

// rootCommand is the table of subcommands.
func rootCommand(e env) *cobra.Command {
	root := &cobra.Command{
		Use:   "sluice",
		Short: "Enforce Kubernetes NetworkPolicy on a node, and say what policies allow and why",
		Long: `Sluice enforces Kubernetes NetworkPolicy on a node: it judges the first packet
of every new pod connection and leaves the rest of the connection to the kernel.

The same decision answers without packets: explain one flow, test your policies,
draw the matrix of who can reach whom, lint.`,
		Example: `  sluice run --manifests ./policies                 enforce, from a folder of manifests
  sluice explain -f ./policies --from default/web --to default/db --port 6379`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          knownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(commands(e)...)
	return root
}

// commands is the table of subcommands, in the order of the help.
func commands(e env) []*cobra.Command {
	return []*cobra.Command{
		runCommand(e),
		explainCommand(e),
		testCommand(e),
		matrixCommand(e),
		lintCommand(e),
		statusCommand(e),
		rulesCommand(e),
		versionCommand(e),
	}
}

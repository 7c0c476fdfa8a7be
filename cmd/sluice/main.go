// Command sluice enforces Kubernetes NetworkPolicy on a node. It also explains, on any
// machine, what policies allow.
//
// This package defines the subcommands with their flags and output. The packages that it
// imports do the work.
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

// env is the environment of a command. Tests run the real commands in an env of their own.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
}

// exitError ends the command with an exit status. run() prints the field "err". If the command
// has already printed everything, the field is nil.
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
	exitFindings = 1 // the command worked, and found a problem
	exitFailed   = 2 // the command could not do its work
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, env{os.Stdin, os.Stdout, os.Stderr, os.Getenv}, os.Args[1:])
	stop()
	os.Exit(status)
}

// run is the whole program as a function of its environment. It returns the exit status.
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

// The help lists the commands in the order in which commands() returns them, not by name.
func init() { cobra.EnableCommandSorting = false }

// rootCommand returns the command sluice with all subcommands.
func rootCommand(e env) *cobra.Command {
	root := &cobra.Command{
		Use:   "sluice",
		Short: "Enforce Kubernetes NetworkPolicy on a node, and show what policies allow and why",
		Long: `Sluice enforces Kubernetes NetworkPolicy and ClusterNetworkPolicy on a node: it judges
the first packet of every new pod connection and leaves the rest of the connection to the
kernel.

The same decision answers without packets: explain one flow, test your policies,
draw the matrix of who can reach whom, lint.`,
		Example: `  sluice run --manifests ./policies                 enforce, from a directory of manifests
  sluice explain -f ./policies --from default/web --to default/db --port 6379`,
		PersistentPreRun: func(cmd *cobra.Command, _ []string) { noticeOldNames(e.stderr, cmd.Flags()) },

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

// commands returns the subcommands in the order of the help.
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

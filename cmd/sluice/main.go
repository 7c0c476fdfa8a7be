// Command sluice enforces Kubernetes NetworkPolicy on a node. It also explains, on any
// machine, what policies allow.
//
// This package defines the subcommands with their flags and output. The packages that it
// imports do the work.
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// env is the environment of a command. Tests run the real commands in an env of their own.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	checkTimeout   time.Duration // bound of wait --timeout 0; 0 means answerTimeout. Tests set it
	program        string        // the name by which the program was called, as in "kubectl sluice"; empty means sluice
}

// name returns the name by which the program was called.
func (e env) name() string { return cmp.Or(e.program, "sluice") }

// say prints a line to the standard error, after the program's name.
func (e env) say(format string, args ...any) {
	fmt.Fprintf(e.stderr, e.name()+": "+format+"\n", args...)
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
	status := run(ctx, env{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv, program: programName(os.Args[0])}, os.Args[1:])
	stop()
	os.Exit(status)
}

// programName returns the name by which the program was called, given the path of its executable. For
// "kubectl sluice", kubectl runs the executable kubectl-sluice.
func programName(path string) string {
	if strings.TrimSuffix(filepath.Base(path), ".exe") == "kubectl-sluice" {
		return "kubectl sluice"
	}
	return "sluice"
}

// run is the whole program as a function of its environment. It returns the exit status.
func run(ctx context.Context, e env, args []string) (status int) {
	root := rootCommand(e)
	root.SetArgs(args)
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	if len(args) > 0 && args[0] == cobra.ShellCompRequestCmd {
		root.SetOut(unquoted{e.stdout})
	}
	root.SetErr(e.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if cmd == root && len(args) > 0 && !strings.HasPrefix(args[0], "-") {
			return knownCommand(root, args[:1]) // the command is misspelled, so its flag is unknown
		}
		return flagError(cmd, err)
	})
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	exit := exitError{status: exitFailed, err: err}
	errors.As(err, &exit)
	if exit.err != nil {
		e.say("%v", err)
	}
	return exit.status
}

// unquoted leaves out the backquotes that mark the name of a value in the text of a flag: completion
// prints the text as it is.
type unquoted struct{ out io.Writer }

func (u unquoted) Write(text []byte) (int, error) {
	if _, err := u.out.Write(bytes.ReplaceAll(text, []byte("`"), nil)); err != nil {
		return 0, err
	}
	return len(text), nil
}

// The help lists the commands in the order in which commands() returns them, not by name.
func init() { cobra.EnableCommandSorting = false }

// rootCommand returns the command sluice with all subcommands.
func rootCommand(e env) *cobra.Command {
	color, paint := colorAuto, &painter{out: e.stdout}
	e.stdout = paint
	root := &cobra.Command{
		Use:   "sluice",
		Short: "Enforce Kubernetes NetworkPolicy on a node, and show what policies allow and why",
		Long: `Sluice enforces Kubernetes NetworkPolicy and ClusterNetworkPolicy on a node: it judges
the first packet of every new pod connection and leaves the rest of the connection to the
kernel.

The same decision answers without packets: explain one flow, test your policies,
draw the matrix of who can reach whom, report to an auditor, lint. These commands read
manifests (-f), or the cluster of the kubeconfig's current context.`,
		Example: `  sluice run --manifests ./policies                 enforce, from a directory of manifests
  sluice explain -f ./policies --from default/web --to default/db --port 6379`,
		Version:     versionLine(),
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: e.name()},
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			noticeOldNames(e, cmd.Flags())
			paint.on = color.wanted(e, paint.out)
		},

		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          knownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.DisableDefaultCmd = true // completionCommand replaces the default one
	root.PersistentFlags().Var(newChoiceFlag(&color, colorAuto, colorAlways, colorNever), "color", "colors in text: auto (on a terminal, unless $NO_COLOR is set), always or never")
	root.SetVersionTemplate("{{.Version}}\n")
	root.AddCommand(commands(e)...)
	root.SetHelpCommand(helpCommand(root))
	root.InitDefaultVersionFlag()
	root.Flags().Lookup("version").Usage = "print the version"
	renameExamples(root, e.name())
	completeFlags(root)
	return root
}

// helpCommand returns the command "help". Unlike that of cobra, it fails for an unknown command.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [command]",
		Short: "Help about any command",
		Long:  "Help prints the help of a command.",
		Args: func(_ *cobra.Command, args []string) error {
			if found, _, err := root.Find(args); err == nil && found != root {
				return nil
			}
			return knownCommand(root, args)
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, begun string) (names []string, _ cobra.ShellCompDirective) {
			for _, c := range root.Commands() {
				if len(args) == 0 && c.IsAvailableCommand() && strings.HasPrefix(c.Name(), begun) {
					names = append(names, cobra.CompletionWithDesc(c.Name(), c.Short))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, _, err := root.Find(args)
			if err != nil {
				return err
			}
			cmd.InitDefaultHelpFlag() // so that the help lists the flag
			return cmd.Help()
		},
	}
}

// renameExamples replaces "sluice" in the examples of all commands by the name by which the program was
// called.
func renameExamples(cmd *cobra.Command, name string) {
	cmd.Example = exampleName.ReplaceAllString(cmd.Example, "${1}"+name+" ")
	for _, sub := range cmd.Commands() {
		renameExamples(sub, name)
	}
}

// exampleName matches the program's name at the beginning of a command in an example.
var exampleName = regexp.MustCompile(`(?m)(^ *|[|] )sluice `)

// commands returns the subcommands in the order of the help.
func commands(e env) []*cobra.Command {
	return []*cobra.Command{
		runCommand(e),
		explainCommand(e),
		testCommand(e),
		matrixCommand(e),
		diffCommand(e),
		reportCommand(e),
		lintCommand(e),
		statusCommand(e),
		waitCommand(e),
		observeCommand(e),
		deniedCommand(e),
		rulesCommand(e),
		completionCommand(e),
		versionCommand(e),
	}
}

package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sluice/filter/policy/near"
)

// flagError says which flag was probably meant, or where to look.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if best, ok := near.Name(unknown.GetSpecifiedName(), names); ok {
			return fmt.Errorf("%w: did you mean --%s? (see: %s --help)", err, best, cmd.CommandPath())
		}
	}
	return fmt.Errorf("%w (see: %s --help)", err, cmd.CommandPath())
}

// knownCommand refuses what is no subcommand, and says which was probably meant.
func knownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	if best, ok := near.Name(args[0], names); ok {
		return fmt.Errorf("there is no command %q: did you mean %s %s?", args[0], cmd.CommandPath(), best)
	}
	return fmt.Errorf("there is no command %q: the commands are %s", args[0], strings.Join(names, ", "))
}

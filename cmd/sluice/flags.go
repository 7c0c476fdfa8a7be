package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sluice/filter/policy/near"
)

// flagError adds to err the flag that was probably meant, and the command that prints help.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		if hint := cmp.Or(selectorHint(cmd, unknown.GetSpecifiedName()), followHint(cmd, unknown.GetSpecifiedName())); hint != "" {
			return fmt.Errorf("%w: %s (see: %s --help)", err, hint, cmd.CommandPath())
		}
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if best, ok := near.Name(unknown.GetSpecifiedName(), names); ok {
			return fmt.Errorf("%w: did you mean --%s? (see: %s --help)", err, best, cmd.CommandPath())
		}
	}
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		// The errors of these types are those of the functions that parse them.
		hint, has := map[string]string{"bool": "give true or false", "duration": "give a duration, such as 90s or 5m"}[invalid.GetFlag().Value.Type()]
		if has {
			err = fmt.Errorf("invalid argument %q for --%s: %s", invalid.GetValue(), invalid.GetFlag().Name, hint)
		}
	}
	return fmt.Errorf("%w (see: %s --help)", err, cmd.CommandPath())
}

// selectorHint returns what to write instead of the flags that kubectl has for labels. It is empty for
// other flags, and for commands without ends of flows.
func selectorHint(cmd *cobra.Command, flag string) string {
	if cmd.Flags().Lookup("from") == nil || flag != "l" && flag != "selector" {
		return ""
	}
	return "write labels as an end, as in --from app=web or --to shop/app=web"
}

// followHint returns what to use instead of following denials with the command denied. It is empty for other
// flags and commands.
func followHint(cmd *cobra.Command, flag string) string {
	if cmd.Name() != "denied" || flag != "f" && flag != "follow" {
		return ""
	}
	return "follow denials with observe -f --verdict denied"
}

// knownCommand returns an error for an unknown subcommand. The error names the subcommand that
// was probably meant.
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

// noArgs returns an error if there are arguments, for a command without any.
func noArgs(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case cmd.Flags().Lookup("filename") != nil:
		return fmt.Errorf("%s takes no arguments: give manifests with -f %s", cmd.Name(), args[0])
	case cmd.Flags().Lookup("manifests") != nil:
		return fmt.Errorf("%s takes no arguments: give manifests with --manifests %s", cmd.Name(), args[0])
	}
	return fmt.Errorf("%s takes no arguments: remove %s", cmd.Name(), args[0])
}

// newNameKey is the key of the annotation with which a deprecated flag names its successor.
// pflag has notices of deprecated flags too, but prints them on the standard output, which
// other programs read.
const newNameKey = "sluice.old-name-of"

// addOldName adds a second, deprecated name for a flag: "now" is the name of the flag, and
// "old" is the deprecated name. If the user gives the old name, the command prints a notice
// (see noticeOldNames). If the user gives both names, the values must be equal.
func addOldName(fs *pflag.FlagSet, old, now string) {
	f := fs.Lookup(now)
	given := new(string)
	alias := *f
	f.Value, alias.Value = renamedValue{f.Value, now, given}, renamedValue{f.Value, old, given}
	alias.Name, alias.Hidden, alias.Annotations = old, true, map[string][]string{newNameKey: {now}}
	fs.AddFlag(&alias)
}

// renamedValue is the value of a flag under its old or new name.
type renamedValue struct {
	pflag.Value
	name  string  // the old or the new name
	given *string // shared by both flags: the name under which the user set the flag, or empty
}

func (v renamedValue) Set(text string) error {
	before := v.String()
	if err := v.Value.Set(text); err != nil {
		return err
	}
	if other := *v.given; other != "" && other != v.name && v.String() != before {
		return fmt.Errorf("--%s is the same flag and is %s: give one of the two", other, before)
	}
	*v.given = v.name
	return nil
}

// noticeOldNames prints a notice for each flag that the user gave under its old name.
func noticeOldNames(e env, fs *pflag.FlagSet) {
	fs.Visit(func(f *pflag.Flag) {
		if now := f.Annotations[newNameKey]; now != nil {
			e.say("--%s is deprecated: use --%s", f.Name, now[0])
		}
	})
}

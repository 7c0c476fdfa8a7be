package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"sluice/cache/conntrack"
	"sluice/cache/kernel"
	"sluice/cmd/sluice/telemetry"
	"sluice/filter/guard"
	"sluice/filter/rules"
)

func rulesCommand(e env) *cobra.Command {
	var opts rules.Options
	var remove bool
	var bpffs, pins, socket string
	cmd := &cobra.Command{
		Use:   "rules",
		Short: "Print the iptables rules that run keeps, or remove them",
		Long: `Rules prints the exact iptables rules that "sluice run" keeps with the same flags,
for IPv4 and IPv6, as iptables-restore --noflush takes them. This needs no
privilege and changes nothing. With its --kernel-cache there are two more before the
last, which call the programs of that agent: --kernel-cache-pins shows them too.
Where its --guard checks the sources of packets at every interface, which takes Linux
6.6, the chain SLUICE-SOURCE and the jump to it are left out, as --guarded shows.
With the nft backend, where the table mangle belongs to another process or has a
POSTROUTING or PREROUTING that is not iptables' own, the same rules are in tables
of their own, named sluice, which "nft list table ip sluice" shows (ip6 likewise);
"sluice status" names the tables in use.

With --remove it takes away every trace of an agent that is gone: the chains
named SLUICE and the rules that lead to them, in both backends of iptables, the
tables named sluice, the programs that they called, those of the guard on interfaces,
and the two bits of connection marks. If the agent ran with --judged-mark or --revoked-mark, give the
same again. Before Linux 6.6 a qdisc clsact, without filters of ours, stays on the pods'
interfaces: while the kernel removes one, it drops what is sent there.

An agent that still runs puts its rules back within seconds: stop it first. If one
answers on --socket, a warning names its process, and the exit status is 1 although
everything was removed; it is 0 otherwise, and 2 if something cannot be removed.`,
		Example: `  sluice rules
  sluice rules --queues 2 --fail open
  sluice rules --remove                             # as root`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.Validate(); err != nil {
				return err
			}
			if remove {
				warned := warnOfAgent(cmd.Context(), e.stderr, socket)
				if err := runRemove(cmd.Context(), e.stdout, opts, bpffs); err != nil || !warned {
					return err
				}
				return exitError{status: exitFindings}
			}
			return printRules(e.stdout, withPins(opts, pins))
		},
	}
	addRulesFlags(cmd.Flags(), &opts)
	addPinsFlag(cmd.Flags(), &pins)
	cmd.Flags().BoolVar(&opts.Guarded, "guarded", false, "print the rules without those about forged sources, as they are where the guard checks all interfaces")
	addBPFFSFlag(cmd.Flags(), &bpffs)
	cmd.Flags().StringVar(&socket, "socket", telemetry.DefaultSocket, "with --remove, the `PATH` of the socket on which an agent that still runs answers; empty to ask none")
	cmd.Flags().BoolVar(&remove, "remove", false, "take away every trace of an agent that is gone")
	return cmd
}

// printRules writes the rules of both families.
func printRules(out io.Writer, opts rules.Options) error {
	var b strings.Builder
	for _, f := range rules.Families {
		fmt.Fprintf(&b, "# %s\n%s", f, opts.Wanted(f))
	}
	if _, err := io.WriteString(out, b.String()); err != nil {
		return fmt.Errorf("write the rules: %w", err)
	}
	return nil
}

// warnOfAgent warns of an agent that still runs and will put back what is removed. It
// reports whether it did. An agent that does not answer in time counts as one.
func warnOfAgent(ctx context.Context, out io.Writer, socket string) bool {
	if socket == "" {
		return false
	}
	ctx, cancel := within(ctx, statusPatience, "to answer")
	defer cancel()
	s, err := telemetry.Ask(ctx, socket)
	switch {
	case errors.Is(err, telemetry.ErrNoAgent):
		return false
	case err != nil:
		fmt.Fprintf(out, "sluice: warning: an agent may still run, and puts back what is removed: %v\n", err)
	case s.Process == 0:
		fmt.Fprintln(out, "sluice: warning: an agent still runs (in another container) and puts back what is removed: end it first")
	default:
		fmt.Fprintf(out, "sluice: warning: an agent still runs (process %d) and puts back what is removed: end it first\n", s.Process)
	}
	return true
}

// runRemove takes everything away that an agent has left in the kernel. What
// has been removed is said even if something else fails.
func runRemove(ctx context.Context, out io.Writer, opts rules.Options, bpffs string) error {
	removed, err := removeTraces(ctx, opts, bpffs)
	var b strings.Builder
	for _, line := range removed {
		fmt.Fprintf(&b, "removed %s\n", line)
	}
	if len(removed) == 0 && err == nil {
		b.WriteString("There was nothing to remove.\n")
	}
	if _, werr := io.WriteString(out, b.String()); werr != nil {
		err = errors.Join(err, fmt.Errorf("write what was removed: %w", werr))
	}
	return err
}

// removeTraces removes rules first: they would mark connections anew, and call the
// programs.
func removeTraces(ctx context.Context, opts rules.Options, bpffs string) (removed []string, err error) {
	tables, err := rules.OpenAll(ctx)
	if err == nil {
		removed, err = rules.Traces(ctx, tables)
	}
	if errors.Is(err, rules.ErrPrivilege) {
		return removed, err // the marks would be refused for the same reason
	}
	guarded, guardErr := guard.RemoveTraces()
	for _, name := range guarded {
		removed = append(removed, "the guard of interface "+name)
	}
	err = errors.Join(err, guardErr)
	dirs, pinsErr := kernel.RemoveStale(bpffs)
	for _, dir := range dirs {
		removed = append(removed, "the programs pinned in "+dir)
	}
	err = errors.Join(err, pinsErr)
	kernel, openErr := conntrack.Open(conntrack.Options{})
	if openErr != nil {
		return removed, errors.Join(err, openErr)
	}
	cleared, clearErr := conntrack.ClearMarks(ctx, kernel, opts.Mask())
	if cleared > 0 {
		removed = append(removed, "the marks of "+count(cleared, "connection", "connections"))
	}
	return removed, errors.Join(err, clearErr, kernel.Close())
}

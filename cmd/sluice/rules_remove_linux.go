package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/pflag"

	"sluice/cache/bpf"
	"sluice/cache/conntrack"
	"sluice/cmd/sluice/agent/status"
	"sluice/filter/guard"
	"sluice/filter/iptables"
)

// removal has the flags of "sluice rules" about what an agent has left on
// this node.
type removal struct {
	wanted        bool
	bpffs, socket string
}

func (r *removal) addFlags(fs *pflag.FlagSet) {
	addBPFFSFlag(fs, &r.bpffs)
	fs.StringVar(&r.socket, "socket", status.DefaultSocket, "with --remove, the `PATH` of the socket of an agent that may still run; empty disables the check")
	fs.BoolVar(&r.wanted, "remove", false, "remove everything that an agent has left")
}

// run removes what an agent has left. An agent that still runs is a finding.
func (r removal) run(ctx context.Context, e env, opts iptables.Options) error {
	warned := warnOfAgent(ctx, e.stderr, r.socket)
	if err := runRemove(ctx, e.stdout, opts, r.bpffs); err != nil || !warned {
		return err
	}
	return exitError{status: exitFindings}
}

// warnOfAgent prints a warning if an agent still runs, which would restore the rules. It
// reports whether it has printed one. An agent that does not answer in time counts as running.
func warnOfAgent(ctx context.Context, out io.Writer, socket string) bool {
	if socket == "" {
		return false
	}
	s, err := status.Ask(ctx, socket)
	switch {
	case errors.Is(err, status.ErrNoAgent):
		return false
	case err != nil:
		fmt.Fprintf(out, "sluice: warning: an agent may still run and restore what is removed: %v\n", err)
	case s.Process == 0:
		fmt.Fprintln(out, "sluice: warning: an agent still runs (in another container) and restores what is removed: stop it first")
	default:
		fmt.Fprintf(out, "sluice: warning: an agent still runs (process %d) and restores what is removed: stop it first\n", s.Process)
	}
	return true
}

// runRemove removes everything that an agent has left in the kernel. It prints what was
// removed, even if it could not remove everything.
func runRemove(ctx context.Context, out io.Writer, opts iptables.Options, bpffs string) error {
	removed, err := removeAll(ctx, opts, bpffs)
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

// removeAll removes rules, guard, programs and marks, and returns a line for each thing that
// it has removed. The rules come first, because they mark connections and call the programs.
func removeAll(ctx context.Context, opts iptables.Options, bpffs string) (removed []string, err error) {
	tables, err := iptables.OpenAll(ctx)
	if err == nil {
		removed, err = iptables.Cleanup(ctx, tables)
	}
	if errors.Is(err, iptables.ErrPrivilege) {
		return removed, err // the other removals would fail for the same reason
	}
	guarded, guardErr := guard.Cleanup(bpffs)
	for _, name := range guarded.Interfaces {
		removed = append(removed, "the guard of interface "+name)
	}
	if guarded.Pins != "" {
		removed = append(removed, "the programs pinned in "+guarded.Pins)
	}
	err = errors.Join(err, guardErr)
	dirs, pinsErr := bpf.RemoveStale(bpffs)
	for _, dir := range dirs {
		removed = append(removed, "the programs pinned in "+dir)
	}
	err = errors.Join(err, pinsErr)
	table, openErr := conntrack.Open(conntrack.Options{})
	if openErr != nil {
		return removed, errors.Join(err, openErr)
	}
	cleared, clearErr := conntrack.ClearMarks(ctx, table, opts.Mask())
	if cleared > 0 {
		removed = append(removed, "the marks of "+count(cleared, "connection", "connections"))
	}
	return removed, errors.Join(err, clearErr, table.Close())
}

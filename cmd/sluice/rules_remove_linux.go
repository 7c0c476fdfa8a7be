package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"sluice/cache/bpf"
	"sluice/cache/conntrack"
	"sluice/cmd/sluice/agent/status"
	"sluice/filter/guard"
	"sluice/filter/iptables"
)

// removal has the flags of "sluice rules" that are about removing what an agent has left on this node.
type removal struct {
	wanted        bool
	bpffs, socket string
}

func (r *removal) addFlags(fs *pflag.FlagSet) {
	addBPFFSFlag(fs, &r.bpffs)
	fs.StringVar(&r.socket, "socket", status.DefaultSocket, "with --remove, the `PATH` of the socket of an agent that may still run; empty disables the check")
	fs.BoolVar(&r.wanted, "remove", false, "remove everything that an agent has left")
}

// run removes what an agent has left. If an agent may still run, run keeps its socket, and returns
// exitFindings after removing the rest.
func (r removal) run(ctx context.Context, e env, opts iptables.Options) error {
	warned := warnOfAgent(ctx, e.stderr, r.socket)
	stale := r.socket
	if warned {
		stale = ""
	}
	if err := runRemove(ctx, e.stdout, opts, r.bpffs, stale); err != nil || !warned {
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

// runRemove removes everything that an agent has left in the kernel, and the agent's socket if socket
// is not empty. It prints what it has removed, even if it could not remove everything.
func runRemove(ctx context.Context, out io.Writer, opts iptables.Options, bpffs, socket string) error {
	removed, err := removeAll(ctx, opts, bpffs)
	if gone, wrong := removeSocket(socket); gone {
		removed = append(removed, "the socket "+socket)
	} else {
		err = errors.Join(err, wrong)
	}
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

// removeSocket removes the socket of an ended agent, and reports whether there was one. The agent
// created the directory of the default socket, so removeSocket removes this directory too if it is
// empty.
func removeSocket(path string) (gone bool, err error) {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return false, nil // there is no socket
	}
	if err := os.Remove(path); err != nil {
		return false, fmt.Errorf("remove the socket of an agent: %w", err)
	}
	if path == status.DefaultSocket {
		_ = os.Remove(filepath.Dir(path)) // fails if the directory is not empty, which is right
	}
	return true, nil
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

package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sluice/filter"
	"sluice/filter/iptables"
)

func rulesCommand(e env) *cobra.Command {
	var opts iptables.Options
	var inWords bool
	var pins string
	var removal removal
	var denial filter.Denial
	cmd := &cobra.Command{
		Use:   "rules",
		Short: "Print the iptables rules that run keeps, or remove them",
		Long: `Rules prints the iptables rules that "sluice run" keeps with the same flags, for IPv4
and IPv6, in the format of iptables-restore --noflush. This needs no privilege and
changes nothing. The rules on a node may differ from this in six ways:

  - With --kernel-cache, rules call the programs of the agent: in SLUICE, one after the rule
    for allowed connections, and one or two before those that queue. --kernel-cache-pins
    prints them too.
  - If --guard checks the sources of packets at every interface, which needs Linux 6.6,
    the chain SLUICE-SOURCE and the jump to it are missing. --guarded prints the rules
    without them.
  - While a ClusterNetworkPolicy may deny what pods send to their own node, INPUT jumps
    to the chain SLUICE-INPUT, which selects the sources to judge, and SLUICE-NODE judges
    them. --node-sources prints these rules for some addresses.
  - While denied packets may be rejected (--deny-with, annotation sluice/deny-with), FORWARD
    jumps to the chain SLUICE-FORWARD, which judges forwarded packets and marks those to
    reject, and the table filter has the chain SLUICE-REJECT. --deny-with reject prints
    these rules.
  - If the kernel also has br_netfilter, there are rules about what comes from the ports of
    a bridge: broadcast, and TCP through a Service. --bridge-ports prints them too.
  - With the nft backend, if the table mangle belongs to another process, or if its
    POSTROUTING, PREROUTING, INPUT or FORWARD is not iptables' own chain, the same rules
    are in tables named sluice. "nft list table ip sluice" and "nft list table ip6 sluice"
    print them. "sluice status" names the tables.

With --remove it removes everything that an agent has left: the chains named SLUICE and
the rules that lead to them, in both backends of iptables, the tables named sluice, the
programs that they called, those of the guard on interfaces, and the two bits of
connection marks. If the agent ran with --allowed-mark or --revoked-mark, give the same
flags. Before Linux 6.6, an empty qdisc clsact stays on the pods' interfaces: the kernel
drops packets while it removes one.

An agent that still runs restores its rules within seconds: stop it first. If one answers
on --socket, a warning names its process, and the exit status is 1 although everything
was removed; otherwise it is 0, and 2 if something cannot be removed.`,
		Example: `  sluice rules
  sluice rules --queues 2 --fail open
  sluice rules --deny-with reject --words
  sluice rules --remove                             # as root`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.Validate(); err != nil {
				return err
			}
			if removal.wanted {
				return removal.run(cmd.Context(), e, opts)
			}
			opts.Reject = denial == filter.DenialReject
			return printRules(e.stdout, withPins(opts, pins), inWords)
		},
	}
	addRulesFlags(cmd.Flags(), &opts)
	addPinsFlag(cmd.Flags(), &pins)
	addDenyWithFlag(cmd.Flags(), &denial, "with reject, also print the rules that reject denied packets")
	cmd.Flags().BoolVar(&opts.Guarded, "guarded", false, "print the rules without those about forged sources, as they are where the guard checks all interfaces")
	cmd.Flags().BoolVar(&opts.BridgePorts, "bridge-ports", false, "with --deny-with reject, also print the rules about ports of a bridge, as they are where the kernel has br_netfilter")
	cmd.Flags().Var((*prefixesFlag)(&opts.NodeSources), "node-sources", "also print the rules that judge what pods with these addresses send to their node")
	cmd.Flags().BoolVar(&inWords, "words", false, "print before each rule, in a comment, what it does")
	removal.addFlags(cmd.Flags())
	return cmd
}

// printRules writes the rules of both families, also in words if inWords is set.
func printRules(out io.Writer, opts iptables.Options, inWords bool) error {
	var b strings.Builder
	for _, f := range iptables.Families {
		text := opts.Wanted
		if inWords {
			text = opts.InWords
		}
		fmt.Fprintf(&b, "# %s\n%s", f, text(f))
	}
	if _, err := io.WriteString(out, b.String()); err != nil {
		return fmt.Errorf("write the rules: %w", err)
	}
	return nil
}

// addPinsFlag adds the flag --kernel-cache-pins.
func addPinsFlag(fs *pflag.FlagSet, dir *string) {
	fs.StringVar(dir, "kernel-cache-pins", "", "also print the rules of the kernel's flow cache, as if its programs were pinned in `DIR`")
}

// withPins returns o with the paths of the programs that are pinned in dir. If dir is empty, it
// returns o unchanged.
func withPins(o iptables.Options, dir string) iptables.Options {
	if dir == "" {
		return o
	}
	o.AllowPin, o.LaterPin = filepath.Join(dir, "allow"), filepath.Join(dir, "later")
	o.ForwardedPin, o.OthersPin = filepath.Join(dir, "forwarded"), filepath.Join(dir, "others")
	if !o.FailOpen {
		o.DenyPin, o.RejectPin = filepath.Join(dir, "deny"), filepath.Join(dir, "reject")
	}
	return o
}

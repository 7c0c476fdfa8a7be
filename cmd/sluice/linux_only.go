//go:build !linux

package main

import (
	"context"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sluice/filter/iptables"
)

// The commands in this file work on a node, which is a Linux machine. On other systems they only return
// an error, which is clearer than "unknown command".

// onlyOnLinux returns the error of a command that this system cannot run.
func onlyOnLinux(command string) error {
	return fmt.Errorf("%s runs on Linux only, and this is %s: run it on a node, or in an agent's pod (kubectl -n kube-system exec daemonset/sluice -- %s)", command, runtime.GOOS, command)
}

// runCommand returns the command "run", which only returns an error on this system. It accepts any
// flags, so that the error is not about a flag.
func runCommand(env) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Enforce the policies on this node (Linux only)",
		Long: `Run enforces NetworkPolicies and ClusterNetworkPolicies on the pods of a node. It works
with the node's iptables and so runs on Linux only. All other commands work here.`,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, arg := range args {
				if arg == "-h" || arg == "--help" {
					return cmd.Help()
				}
			}
			return fmt.Errorf("sluice run runs on Linux only, and this is %s: run it on a node", runtime.GOOS)
		},
	}
}

// removal has the flag --remove. Using it is an error on this system, because it works on nodes.
type removal struct{ wanted bool }

func (r *removal) addFlags(fs *pflag.FlagSet) {
	fs.BoolVar(&r.wanted, "remove", false, "remove everything that an agent has left (Linux only)")
}

func (removal) run(context.Context, env, iptables.Options) error {
	return onlyOnLinux("sluice rules --remove")
}

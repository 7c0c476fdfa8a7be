package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"sluice/cmd/sluice/agent/status"
	"sluice/watch/kube"
)

// waitOptions are the flags of wait.
type waitOptions struct {
	fleetOptions
	names   []string
	paths   []string
	socket  string
	timeout time.Duration
	deleted bool

	checkTimeout time.Duration // bound of the only check if timeout is 0
}

func waitCommand(e env) *cobra.Command {
	opts := waitOptions{socket: status.DefaultSocket, timeout: 30 * time.Second, checkTimeout: cmp.Or(e.checkTimeout, answerTimeout)}
	cmd := &cobra.Command{
		Use:   "wait",
		Short: "Wait until policies are in force on all nodes",
		Long: `Wait returns when every node enforces the versions that the policies have now in the
Kubernetes API, or later ones. They then apply to new connections, to the kernel's flow
cache and to the connections from before. Wait asks every agent through the Kubernetes API:
it executes a command in the agent's pod, with the rights of the user. It names the nodes
without an agent, and does not wait for them.

Name the policies with --for, or give manifests that contain them with -f. A name is
NAMESPACE/NAME or networkpolicy/NAMESPACE/NAME (netpol/...) of a NetworkPolicy, and
admin/NAME, baseline/NAME or clusternetworkpolicy/NAME (cnp/NAME) of a
ClusterNetworkPolicy. With --for - wait reads names from the standard input, one to a
line, until an empty line or the end.

With --socket, it asks only the agent of this node, and needs no cluster. If no agent
answers there, it fails at once. It waits for the policies as the manifests of -f define
them, for the resourceVersion in --for NAMESPACE/NAME@VERSION or, without either, for any
version.

If an agent is not ready because packets bypass the policies, or because it cannot keep its
rules in place, no policy counts as in force on its node.

The exit status is 0 if the policies are in force, 1 if they are not in force in time, and
2 if wait could not do its work. With status 1, wait also prints which nodes lag.`,
		Example: `  sluice wait --for default/web
  sluice wait --for default/web --for admin/platform --timeout 1m --context production
  sluice wait --for default/web --deleted
  sluice wait -f policies/
  sluice wait --socket /run/sluice/sluice.sock -f policies/`,
		Args: waitArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return wait(cmd.Context(), e, &opts, cmd.Flags().Changed("socket"))
		},
	}
	fs := cmd.Flags()
	fs.StringArrayVar(&opts.names, "for", nil, "`POLICY` to wait for, as in default/web or admin/platform, or - for names on the standard input (repeatable)")
	fs.StringArrayVarP(&opts.paths, "filename", "f", nil, "`FILE` or directory of manifests with the policies to wait for, or - for the standard input (repeatable)")
	fs.DurationVar(&opts.timeout, "timeout", opts.timeout, "how long to wait; 0 checks once")
	fs.BoolVar(&opts.deleted, "deleted", false, "wait until the policies are not in force any more")
	fs.StringVar(&opts.socket, "socket", opts.socket, "`PATH` of the agent's socket, such as "+status.DefaultSocket+": ask only the agent of this node")
	fs.Lookup("socket").DefValue = "" // without the flag, wait does not ask the agent of this node
	addFleetFlags(fs, &opts.fleetOptions)
	return cmd
}

// waitArgs returns an error if there are arguments. It tells how to name a policy or manifests.
func waitArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	_, missing := os.Stat(args[0])
	if _, err := status.ParseWanted(args[0]); err == nil && missing != nil {
		return fmt.Errorf("wait takes no arguments: name policies with --for %s", args[0])
	}
	return noArgs(cmd, args)
}

// wait waits until the policies are in force: on this node if here is true, otherwise on all nodes of a
// cluster.
func wait(ctx context.Context, e env, opts *waitOptions, here bool) error {
	switch {
	case opts.timeout < 0:
		return fmt.Errorf("--timeout %v is negative: give the time to wait, or 0 to check once", opts.timeout)
	case here && opts.given():
		return errors.New("--socket asks this node, and --context or --kubeconfig a cluster: give one of them")
	}
	ctx, stop := opts.bounded(ctx)
	defer stop()
	wanted, err := opts.wantedPolicies(e.stdin, here)
	if err != nil {
		return err
	}
	if here {
		return waitHere(ctx, e, opts, wanted)
	}
	f, err := opts.open()
	if errors.Is(err, kube.ErrNoCluster) {
		return fmt.Errorf("%w, or --socket %s to ask only the agent of this node", err, status.DefaultSocket)
	}
	if err != nil {
		return err
	}
	return waitEverywhere(ctx, e, f, opts, wanted)
}

// errTimeout is the cause with which the context of a wait ends after the time of --timeout.
var errTimeout = errors.New("--timeout is over")

// bounded returns a context that ends with the timeout or, without a timeout, with that of one check.
func (o *waitOptions) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if o.timeout == 0 {
		return context.WithTimeoutCause(ctx, o.checkTimeout, errTimeout)
	}
	return context.WithTimeoutCause(ctx, o.timeout, errTimeout)
}

// notInTime returns the error of a wait that has ended without success. If the wait was interrupted, the
// error says so. After the timeout or the only check, it gives the reason why.
func (o *waitOptions) notInTime(ctx context.Context, why string) error {
	switch cause := context.Cause(ctx); {
	case cause != nil && !errors.Is(cause, errTimeout):
		return errors.New("interrupted")
	case o.timeout == 0:
		return exitError{exitFindings, errors.New(why)}
	}
	return exitError{exitFindings, fmt.Errorf("after %v: %s", o.timeout, why)}
}

// sayInForce prints that the policies are in force.
func sayInForce(e env, wanted []status.Wanted, where string) {
	for i := range wanted {
		w := &wanted[i]
		switch {
		case w.Deleted:
			fmt.Fprintf(e.stdout, "%s is not in force%s\n", w.Title(), where)
		case w.Version != "":
			fmt.Fprintf(e.stdout, "%s (version %s) is in force%s\n", w.Title(), w.Version, where)
		default:
			fmt.Fprintf(e.stdout, "%s is in force%s\n", w.Title(), where)
		}
	}
}

// ended reports whether ctx has ended. It also reports true when the deadline has passed and ctx does not
// know it yet, because a connection with the same deadline may fail a moment before ctx ends.
func ended(ctx context.Context) bool {
	until, has := ctx.Deadline()
	return ctx.Err() != nil || has && !time.Now().Before(until)
}

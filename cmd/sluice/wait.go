package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"sluice/cmd/sluice/agent/status"
	"sluice/filter/policy"
	"sluice/watch/kube"
	"sluice/watch/manifests"
)

const (
	// waitInterval is the time between two requests to the agent of this node.
	waitInterval = 20 * time.Millisecond
	// retryNodeInterval is the time after which a node that has not answered is asked again.
	retryNodeInterval = time.Second
)

// waitOptions are the flags of wait.
type waitOptions struct {
	fleetOptions
	names   []string
	paths   []string
	socket  string
	timeout time.Duration
	deleted bool
}

func waitCommand(e env) *cobra.Command {
	opts := waitOptions{socket: status.DefaultSocket, timeout: 30 * time.Second}
	cmd := &cobra.Command{
		Use:   "wait",
		Short: "Wait until policies are in force on all nodes",
		Long: `Wait returns when every node enforces the versions that the policies have now in the
Kubernetes API, or later ones. They then apply to new connections, to the kernel's flow
cache and to the connections from before. Wait asks every agent through the Kubernetes API:
it executes a command in the agent's pod, with the rights of the user. It names the nodes
without an agent, and does not wait for them.

Name the policies with --for, or give manifests that contain them with -f. A name is
NAMESPACE/NAME, admin/NAME, clusternetworkpolicy/NAME or networkpolicy/NAMESPACE/NAME.

With --socket, it asks only the agent of this node, and needs no cluster. It then waits for
the policies as the manifests of -f define them, for the resourceVersion in
--for NAMESPACE/NAME@VERSION or, without either, for any version.

The exit status is 0 if the policies are in force, 1 if they are not in force in time, and
2 if wait could not do its work. With status 1, wait also prints which nodes lag.`,
		Example: `  sluice wait --for default/web
  sluice wait --for default/web --for admin/platform --timeout 1m --context production
  sluice wait --for default/web --deleted
  sluice wait -f policies/
  sluice wait --socket /run/sluice/sluice.sock -f policies/`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return wait(cmd.Context(), e, &opts, cmd.Flags().Changed("socket"))
		},
	}
	fs := cmd.Flags()
	fs.StringArrayVar(&opts.names, "for", nil, "`POLICY` to wait for, as in default/web or admin/platform (repeatable)")
	fs.StringArrayVarP(&opts.paths, "filename", "f", nil, "`FILE` or directory of manifests with the policies to wait for, or - for the standard input (repeatable)")
	fs.DurationVar(&opts.timeout, "timeout", opts.timeout, "how long to wait")
	fs.BoolVar(&opts.deleted, "deleted", false, "wait until the policies are not in force any more")
	fs.StringVar(&opts.socket, "socket", opts.socket, "`PATH` of the agent's socket: ask only the agent of this node")
	addFleetFlags(fs, &opts.fleetOptions)
	return cmd
}

// wait waits until the policies are in force: on this node if here is true, otherwise on all nodes of a
// cluster.
func wait(ctx context.Context, e env, opts *waitOptions, here bool) error {
	wanted, err := opts.wantedPolicies(e.stdin, here)
	if err != nil {
		return err
	}
	if here && opts.given() {
		return errors.New("--socket asks this node, and --context or --kubeconfig a cluster: give one of them")
	}
	if here {
		ctx, stop := context.WithTimeoutCause(ctx, opts.timeout, errTimeout)
		defer stop()
		return waitHere(ctx, e, opts, wanted)
	}
	f, err := opts.open()
	if err != nil {
		return err
	}
	return waitEverywhere(ctx, e, f, opts, wanted)
}

// wantedPolicies returns the policies that the flags name. If here is true, policies from manifests also
// have the digest to wait for.
func (o *waitOptions) wantedPolicies(stdin io.Reader, here bool) (all []status.Wanted, err error) {
	for _, name := range o.names {
		w, err := status.ParseWanted(name)
		if err != nil {
			return nil, fmt.Errorf("--for: %w", err)
		}
		all = append(all, w)
	}
	if len(o.paths) > 0 {
		in, problems, err := manifests.Input{Paths: o.paths, Stdin: stdin, Command: "sluice wait"}.Read()
		switch {
		case err != nil:
			return nil, err
		case len(problems) > 0:
			return nil, fmt.Errorf("the manifests have problems, the first in %s: %s: correct it: an agent would keep what it had", problems[0].File, problems[0].What())
		}
		all = ofManifests(all, in.Policies, here)
	}
	if len(all) == 0 {
		return nil, errors.New("there is nothing to wait for: name policies with --for, or give manifests with policies with -f")
	}
	for i := range all {
		all[i].Deleted = o.deleted
	}
	return all, nil
}

// ofManifests returns the named policies. If none are named, it returns the policies that were read from
// manifests. If here is true, it also sets the digests of the policies that are in the manifests.
func ofManifests(named []status.Wanted, read []*policy.Policy, here bool) []status.Wanted {
	all := slices.Clone(named)
	for _, p := range read {
		i := slices.IndexFunc(all, func(w status.Wanted) bool { return w.Ref == p.Ref })
		if i < 0 && len(named) > 0 {
			continue
		}
		if i < 0 {
			i, all = len(all), append(all, status.Wanted{Ref: p.Ref})
		}
		if here {
			all[i].Digest = hex.EncodeToString(p.Digest[:16])
		}
	}
	return all
}

func refsOf(wanted []status.Wanted) (refs []policy.Ref) {
	for i := range wanted {
		refs = append(refs, wanted[i].Ref)
	}
	return refs
}

// waitHere waits for the agent of this node until ctx ends.
func waitHere(ctx context.Context, e env, opts *waitOptions, wanted []status.Wanted) error {
	var why []string
	for first := true; ; first = false {
		v, err := status.AskVersions(ctx, opts.socket, refsOf(wanted)...)
		switch {
		case err == nil:
			if why = v.Missing(wanted); len(why) == 0 {
				sayInForce(e, wanted, "")
				return nil
			}
		case ctx.Err() != nil: // why keeps the reasons of the last answer, if there was one
			if first {
				why = []string{fmt.Sprintf("the agent on %s has not answered", opts.socket)}
			}
		case first:
			return err
		default:
			why = []string{err.Error()} // asks again: another agent may be about to take over
		}
		select {
		case <-ctx.Done():
			return notInTime(ctx, opts.timeout, strings.Join(why, "; "))
		case <-time.After(waitInterval):
		}
	}
}

// errTimeout is the cause with which the context of a wait ends after the time of --timeout.
var errTimeout = errors.New("--timeout is over")

// notInTime returns the error of a wait that has ended without success. If the wait was interrupted, the
// error says so. After the timeout, it gives the reason why.
func notInTime(ctx context.Context, timeout time.Duration, why string) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, errTimeout) {
		return errors.New("interrupted")
	}
	return exitError{exitFindings, fmt.Errorf("after %v: %s", timeout, why)}
}

// sayInForce prints that the policies are in force.
func sayInForce(e env, wanted []status.Wanted, where string) {
	for i := range wanted {
		w := &wanted[i]
		switch {
		case w.Deleted:
			fmt.Fprintf(e.stdout, "%s is not in force any more%s\n", w.Ref, where)
		case w.Version != "":
			fmt.Fprintf(e.stdout, "%s (version %s) is in force%s\n", w.Ref, w.Version, where)
		default:
			fmt.Fprintf(e.stdout, "%s is in force%s\n", w.Ref, where)
		}
	}
}

// setVersions sets the version to wait for, for each policy that was not deleted. If the user has named no
// version, it is the one that the policy has now in the Kubernetes API.
func setVersions(ctx context.Context, f fleet, wanted []status.Wanted) error {
	for i := range wanted {
		w := &wanted[i]
		version, found, err := f.Version(ctx, w.Ref)
		switch {
		case err != nil:
			return err
		case w.Deleted && found:
			return fmt.Errorf("%s still exists in the cluster: delete it first", w.Ref.Object())
		case !w.Deleted && !found:
			return fmt.Errorf("%s does not exist in the cluster: to wait until it is not in force any more, give --deleted", w.Ref.Object())
		case !w.Deleted:
			w.Version = cmp.Or(w.Version, version)
		}
	}
	return nil
}

// waitEverywhere waits for all agents of a cluster.
func waitEverywhere(ctx context.Context, e env, f fleet, opts *waitOptions, wanted []status.Wanted) error {
	if err := setVersions(ctx, f, wanted); err != nil {
		return err
	}
	pods, err := opts.pods(ctx, f)
	if err != nil {
		return err
	}
	sayWithoutAgent(ctx, e, f, pods)
	ctx, stop := context.WithTimeoutCause(ctx, opts.timeout, errTimeout)
	defer stop()
	w := fleetWait{fleet: f, opts: opts, wanted: wanted, done: make(map[string]string)}
	for len(pods) > 0 {
		w.all(ctx, pods)
		// Wait also for agents that have started meanwhile.
		if pods, err = f.Pods(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		pods = slices.DeleteFunc(pods, func(p kube.AgentPod) bool { _, asked := w.done[p.Node]; return asked })
	}
	lagging := w.lagging()
	if len(lagging) == 0 {
		sayInForce(e, wanted, fmt.Sprintf(" on %s", nodesText(len(w.done))))
		return nil
	}
	for _, line := range lagging {
		fmt.Fprintln(e.stdout, line)
	}
	return notInTime(ctx, opts.timeout, fmt.Sprintf("not in force on %d of %s", len(lagging), nodesText(len(w.done))))
}

func nodesText(n int) string {
	if n == 1 {
		return "1 node"
	}
	return fmt.Sprintf("%d nodes", n)
}

// fleetWait waits for nodes.
type fleetWait struct {
	fleet  fleet
	opts   *waitOptions
	wanted []status.Wanted

	mu   sync.Mutex
	done map[string]string // by the names of nodes: why the node lags, or "" if it does not
}

// all waits for the nodes of the given pods.
func (w *fleetWait) all(ctx context.Context, pods []kube.AgentPod) {
	var group sync.WaitGroup
	for _, pod := range pods {
		group.Go(func() {
			why := w.node(ctx, pod)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.done[pod.Node] = why
		})
	}
	group.Wait()
}

func (w *fleetWait) lagging() (lines []string) {
	for node, why := range w.done {
		if why != "" {
			lines = append(lines, node+": "+why)
		}
	}
	slices.Sort(lines)
	return lines
}

// node waits for a node. When the policies are in force there, it returns "". When ctx has ended, it
// returns why the node lags. If the node does not answer, for example while its agent is replaced, node
// asks again.
func (w *fleetWait) node(ctx context.Context, pod kube.AgentPod) (why string) {
	for {
		err := w.fleet.Run(ctx, pod, w.command(ctx), io.Discard)
		var failed *kube.CommandError
		switch {
		case err == nil:
			return ""
		case errors.As(err, &failed) && failed.Status == exitFindings:
			_, reason, _ := strings.Cut(failed.Text, ": ") // without "after 30s"
			return cmp.Or(reason, failed.Text)
		case ctx.Err() == nil:
			why = "it does not answer: " + err.Error()
		}
		select {
		case <-ctx.Done():
			return cmp.Or(why, "it has not answered in time")
		case <-time.After(retryNodeInterval):
		}
		pods, err := w.fleet.Pods(ctx)
		if err != nil {
			continue
		}
		i := slices.IndexFunc(pods, func(p kube.AgentPod) bool { return p.Node == pod.Node })
		if i < 0 {
			if nodes, err := w.fleet.Nodes(ctx); err == nil && !slices.Contains(nodes, pod.Node) {
				return "" // the node is gone
			}
			why = "its agent is gone"
			continue
		}
		pod = pods[i]
	}
}

// command returns the command that waits in the pod of an agent. Its timeout ends a little before ctx, so
// that its answer arrives in time.
func (w *fleetWait) command(ctx context.Context) []string {
	left := w.opts.timeout
	if until, limited := ctx.Deadline(); limited {
		left = time.Until(until)
	}
	left = max(left-time.Second, left/2).Truncate(time.Millisecond)
	command := []string{"sluice", "wait", "--socket", w.opts.socket, "--timeout", left.String()}
	for i := range w.wanted {
		name := status.RefText(w.wanted[i].Ref)
		if v := w.wanted[i].Version; v != "" {
			name += "@" + v
		}
		command = append(command, "--for", name)
	}
	if w.opts.deleted {
		command = append(command, "--deleted")
	}
	return command
}

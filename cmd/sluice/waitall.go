package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"sluice/cmd/sluice/agent/status"
	"sluice/watch/kube"
)

// retryNodeInterval is the time after which a node that has not answered is asked again.
const retryNodeInterval = time.Second

// setVersions sets the version to wait for, for each policy that was not deleted. If the user has named no
// version, it is the one that the policy has now in the Kubernetes API. setVersions also sets the tiers of
// ClusterNetworkPolicies.
func setVersions(ctx context.Context, f fleet, wanted []status.Wanted) error {
	versions, err := f.Versions(ctx, refsOf(wanted))
	if err != nil {
		return err
	}
	for i := range wanted {
		w := &wanted[i]
		now, found := versions[w.Ref]
		if found {
			if err := w.CheckTier(now.Tier); err != nil {
				return err
			}
			w.Tier = strings.ToLower(now.Tier)
		}
		switch {
		case w.Deleted && found:
			return fmt.Errorf("%s still exists in the cluster: delete it first", w.Ref.Object())
		case !w.Deleted && !found:
			return fmt.Errorf("%s does not exist in the cluster: to wait until it is not in force any more, give --deleted", w.Ref.Object())
		case !w.Deleted:
			w.Version = cmp.Or(w.Version, now.Resource)
		}
	}
	return nil
}

// waitEverywhere waits for all agents of a cluster until ctx ends.
func waitEverywhere(ctx context.Context, e env, f fleet, opts *waitOptions, wanted []status.Wanted) error {
	pods, err := prepareWait(ctx, f, opts, wanted)
	if err != nil {
		return err
	}
	if sayWithoutAgent(ctx, e, f, pods); ended(ctx) {
		return opts.notInTime(ctx, "the API server has not listed the nodes")
	}
	w := fleetWait{env: e, fleet: f, opts: opts, wanted: wanted, done: make(map[string]string), notes: make(map[string][]string)}
	defer w.sayNotes()
	for len(pods) > 0 {
		w.all(ctx, pods)
		// Wait also for agents that have started meanwhile.
		if pods, err = f.Pods(ctx); err != nil && !ended(ctx) {
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
	return opts.notInTime(ctx, fmt.Sprintf("not in force on %d of %s", len(lagging), nodesText(len(w.done))))
}

// prepareWait sets the versions to wait for, and returns the pods of the agents.
func prepareWait(ctx context.Context, f fleet, opts *waitOptions, wanted []status.Wanted) (pods []kube.AgentPod, err error) {
	if err := setVersions(ctx, f, wanted); ended(ctx) {
		return nil, opts.notInTime(ctx, "the API server has not told which versions the policies have")
	} else if err != nil {
		return nil, err
	}
	if pods, err = opts.pods(ctx, f); ended(ctx) {
		return nil, opts.notInTime(ctx, "the API server has not listed the agents' pods")
	}
	return pods, err
}

func nodesText(n int) string {
	if n == 1 {
		return "1 node"
	}
	return fmt.Sprintf("%d nodes", n)
}

// fleetWait waits for nodes.
type fleetWait struct {
	env    env
	fleet  fleet
	opts   *waitOptions
	wanted []status.Wanted

	mu    sync.Mutex
	done  map[string]string   // by the names of nodes: why the node lags, or "" if it does not
	notes map[string][]string // by what their commands have said although they succeeded: the names of nodes
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

// sayNotes prints what the commands on nodes have said although they succeeded.
func (w *fleetWait) sayNotes() {
	for _, said := range slices.Sorted(maps.Keys(w.notes)) {
		nodes := w.notes[said]
		slices.Sort(nodes)
		w.env.say("%s: %s", listed(nodes, 20), said)
	}
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
	for said := ""; ; {
		answered, reason := w.ask(ctx, pod)
		if answered {
			return reason
		}
		if reason != "" && reason == why && reason != said {
			said = reason
			w.say(pod.Node, reason+": asking again")
		}
		why = cmp.Or(reason, why, "it has not answered in time")
		if w.opts.timeout == 0 {
			return why
		}
		select {
		case <-ctx.Done():
			return why
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

// say prints a line about a node.
func (w *fleetWait) say(node, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.env.say("%s: %s", node, text)
}

// ask waits for the answer of a node. If the node answers, why is the reason why it lags; empty if it does
// not. If it does not answer, why is the reason for that; empty if ctx has ended.
func (w *fleetWait) ask(ctx context.Context, pod kube.AgentPod) (answered bool, why string) {
	var said string
	err := w.fleet.Run(ctx, pod, kube.Command{Args: w.command(ctx), Input: w.names(), Out: io.Discard, Said: &said})
	var failed *kube.CommandError
	switch {
	case err == nil && said != "":
		w.mu.Lock()
		defer w.mu.Unlock()
		w.notes[said] = append(w.notes[said], pod.Node)
		return true, ""
	case err == nil:
		return true, ""
	case errors.As(err, &failed) && failed.Status == exitFindings:
		if _, reason, has := strings.Cut(failed.Text, ": "); has && strings.HasPrefix(failed.Text, "after ") {
			return true, reason
		}
		return true, failed.Text
	case !ended(ctx):
		return false, "it does not answer: " + err.Error()
	}
	return false, ""
}

// command returns the command that waits in the pod of an agent. Its timeout ends a little before ctx, so
// that its answer arrives in time. It reads names from its standard input.
func (w *fleetWait) command(ctx context.Context) []string {
	left := w.opts.timeout
	if until, limited := ctx.Deadline(); limited && left > 0 {
		left = time.Until(until)
		left = max(left-time.Second, left/2, time.Millisecond).Truncate(time.Millisecond)
	}
	command := []string{"sluice", "wait", "--socket", w.opts.socket, "--timeout", left.String(), "--for", "-"}
	if w.opts.deleted {
		command = append(command, "--deleted")
	}
	return command
}

// names returns the names of the policies for the standard input of the command. They are not in the
// command line, because its length is bounded, by servers and by the kernel.
func (w *fleetWait) names() string {
	var b strings.Builder
	for i := range w.wanted {
		b.WriteString(w.wanted[i].Text())
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
	return b.String()
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"sluice/filter/policy"
	"sluice/watch/kube"
)

const (
	// answerTimeout bounds the wait for the answer of a node.
	answerTimeout = 15 * time.Second
	// maxAsked bounds the nodes that are asked at the same time.
	maxAsked = 64
)

// fleet gives access to the agents of a cluster through the API server. kube.Agents implements it.
type fleet interface {
	Pods(ctx context.Context) ([]kube.AgentPod, error)
	Nodes(ctx context.Context) ([]string, error)
	// Versions returns the current versions of policies. See kube.Agents.Versions.
	Versions(ctx context.Context, of []policy.Ref) (map[policy.Ref]kube.PolicyVersion, error)
	// Run runs a command in a pod. See kube.Agents.Run.
	Run(ctx context.Context, pod kube.AgentPod, command kube.Command) error
}

// fleetOptions select the agents to ask.
type fleetOptions struct {
	clusterOptions
	allNodes            bool
	namespace, selector string
}

// addFleetFlags adds the flags that select the agents of a cluster.
func addFleetFlags(fs *pflag.FlagSet, o *fleetOptions) {
	addClusterFlags(fs, &o.clusterOptions)
	fs.StringVar(&o.namespace, "agent-namespace", "kube-system", "`NAMESPACE` of the agents' pods")
	fs.StringVar(&o.selector, "agent-selector", "app.kubernetes.io/name=sluice", "`LABELS` of the agents' pods")
}

// addAllNodesFlag adds --all-nodes, with which a command asks all agents instead of the agent of this
// node, and the flags that select the agents.
func addAllNodesFlag(fs *pflag.FlagSet, o *fleetOptions) {
	fs.BoolVar(&o.allNodes, "all-nodes", false, "ask the agents of all nodes through the Kubernetes API, with the rights of the user; --context and --kubeconfig imply it")
	addFleetFlags(fs, o)
}

// wanted reports whether all nodes are to be asked.
func (o *fleetOptions) wanted() bool { return o.allNodes || o.given() }

// open returns the agents that the flags select.
func (o *fleetOptions) open() (fleet, error) {
	t, err := kube.FindTarget(kube.ConfigOptions{Kubeconfig: o.kubeconfig, Context: o.context, Version: version()})
	if errors.Is(err, kube.ErrNoCluster) {
		return nil, fmt.Errorf("ask all nodes: %w: give --kubeconfig FILE", err)
	}
	if err != nil {
		return nil, err
	}
	return kube.NewAgents(t.Config, o.namespace, o.selector)
}

// pods returns the agents' pods. It is an error if there are none.
func (o *fleetOptions) pods(ctx context.Context, f fleet) ([]kube.AgentPod, error) {
	pods, err := f.Pods(ctx)
	if err == nil && len(pods) == 0 {
		err = fmt.Errorf("no pod in namespace %s has the labels %s: say where the agents are with --agent-namespace and --agent-selector", o.namespace, o.selector)
	}
	return pods, err
}

// sayWithoutAgent names the nodes that have no agent.
func sayWithoutAgent(ctx context.Context, e env, f fleet, pods []kube.AgentPod) {
	nodes, err := f.Nodes(ctx)
	if err != nil {
		e.say("nodes without an agent cannot be listed: %v", err)
		return
	}
	without := slices.DeleteFunc(nodes, func(node string) bool {
		return slices.ContainsFunc(pods, func(p kube.AgentPod) bool { return p.Node == node })
	})
	if len(without) > 0 {
		e.say("without an agent: %s", listed(without, 20))
	}
}

// listed returns the first names of a list, at most as many as most says, and the number of the others.
func listed(names []string, most int) string {
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// onEach calls f for each pod, at most maxAsked at the same time, and returns when all calls have
// returned.
func onEach(pods []kube.AgentPod, f func(i int, pod kube.AgentPod)) {
	var group errgroup.Group
	group.SetLimit(maxAsked)
	for i, pod := range pods {
		group.Go(func() error { f(i, pod); return nil })
	}
	_ = group.Wait() // the functions return no error
}

// askNode runs a command in the pod of an agent, and passes its output to read. If the command exits with
// exitFindings, its output is an answer as well, and askNode returns no error.
func askNode(ctx context.Context, f fleet, pod kube.AgentPod, command []string, read func(io.Reader) error) error {
	ctx, stop := context.WithTimeoutCause(ctx, answerTimeout, fmt.Errorf("it has not answered within %v", answerTimeout))
	defer stop()
	in, out := io.Pipe()
	done := make(chan error, 1)
	var failed *kube.CommandError // read after done
	go func() {
		err := f.Run(ctx, pod, kube.Command{Args: command, Out: out})
		if errors.As(err, &failed) && failed.Status == exitFindings {
			err = nil
		}
		out.CloseWithError(err) // nil is the end of the output
		done <- err
	}()
	err := read(in)
	_ = in.CloseWithError(err) // so that the command does not wait for a reader
	if failed := <-done; failed != nil {
		return failed
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the command in pod %s has ended without a complete answer%s", pod, saidText(failed))
	}
	return err
}

// saidText returns, after a colon, what a command that has failed has said; empty for nil.
func saidText(failed *kube.CommandError) string {
	if failed == nil {
		return ""
	}
	return ": " + failed.Error()
}

// silentNodes collects the nodes that have not answered.
type silentNodes struct {
	mu    sync.Mutex
	names []string
}

// add adds a node that has not answered, and prints its name and the reason.
func (s *silentNodes) add(e env, node string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names = append(s.names, node)
	e.say("%s does not answer: %v", node, err)
}

// err returns an error if a node has not answered, because then the output of the command is incomplete.
func (s *silentNodes) err() error {
	if len(s.names) == 0 {
		return nil
	}
	return exitError{status: exitFailed}
}

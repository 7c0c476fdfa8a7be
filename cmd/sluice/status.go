package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"sluice/cmd/sluice/agent/status"

	"github.com/spf13/cobra"
)

// statusOutput is the format of the status.
type statusOutput string

const (
	statusText statusOutput = "text"
	statusWide statusOutput = "wide"
	statusJSON statusOutput = "json"
)

// statusOptions are the flags of status.
type statusOptions struct {
	fleetOptions
	socket string
	output statusOutput
	self   bool
	brief  bool
}

// command returns the command that, in the pod of an agent, prints the status of that agent.
func (o *statusOptions) command(flags ...string) []string {
	return append([]string{"sluice", "status", "-o", "json", "--socket", o.socket}, flags...)
}

func statusCommand(e env) *cobra.Command {
	opts := statusOptions{output: statusText}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what this node's agent enforces, and its problems",
		Long: `Status asks the agent of this node, over its unix socket, what it enforces and since
when, what it has done, and which problems there are: policies that cannot be
understood, broken manifests, a Kubernetes API that cannot be followed, rules that
cannot be kept. It lists the policies that select pods of this node, with the version in
force and since when it is. In a cluster: kubectl -n kube-system exec POD -- sluice status.

The digest is the same on all nodes that enforce the same policies and namespaces.

With --all-nodes it asks every agent through the Kubernetes API: it executes a command in
the agent's pod, with the rights of the user. It tells which nodes differ from most others,
and in which policies. If no digest is on more nodes than all others, it tells for each of
the most frequent ones in which policies they differ. It names the nodes that do not answer
and those without an agent.

The exit status is 0 if the agent is ready and has no problems, 1 if it is not ready or
has problems, and 2 if no agent answers. With --all-nodes, it is 0 if this is true of every
Linux node and all enforce the same, 1 if not, and 2 if no agent answers.

With --self it prints in one line whether the agent in this container is ready, for a
readiness probe. It ignores problems in policies, and an agent in another container does
not count as ready.`,
		Example: `  sluice status
  sluice status -o json
  sluice status --all-nodes --context production`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.self && opts.wanted() {
				return errors.New("--self asks the agent in this container, and --all-nodes, --context and --kubeconfig a cluster: give one of them")
			}
			if opts.wanted() {
				f, err := opts.open()
				if err != nil {
					return err
				}
				return statusOfAll(cmd.Context(), e, f, &opts)
			}
			ask := status.AskAll
			if opts.self || opts.brief {
				ask = status.Ask
			}
			s, err := ask(cmd.Context(), opts.socket)
			switch {
			case err != nil:
				return err
			case opts.self:
				return probe(e, s)
			}
			return printStatus(e, s, opts.output)
		},
	}
	cmd.Flags().StringVar(&opts.socket, "socket", status.DefaultSocket, "`PATH` of the agent's socket")
	cmd.Flags().BoolVar(&opts.self, "self", false, "print only whether the agent in this container is ready")
	cmd.Flags().VarP(newChoiceFlag(&opts.output, statusText, statusWide, statusJSON), "output", "o", "text, wide with all policies and pods, or json with all of them")
	cmd.Flags().BoolVar(&opts.brief, "brief", false, "leave out the policies")
	addAllNodesFlag(cmd.Flags(), &opts.fleetOptions)
	return cmd
}

// printStatus writes the status. It returns exitFindings if the agent is not ready or has
// problems.
func printStatus(e env, s *status.Status, output statusOutput) error {
	var err error
	switch output {
	case statusJSON:
		encoder := json.NewEncoder(e.stdout)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(s)
	case statusText, statusWide:
		err = s.WriteText(e.stdout, output == statusWide)
	}
	if err != nil {
		return fmt.Errorf("write the status: %w", err)
	}
	if !s.Good() {
		return exitError{status: exitFindings}
	}
	return nil
}

// probe answers a readiness probe: it returns an error if the agent in this container is not
// ready.
func probe(e env, s *status.Status) error {
	switch {
	case s.Process == 0:
		return exitError{exitFindings, errors.New("another agent answers: this one has not taken over yet")}
	case !s.Ready:
		return exitError{exitFindings, errors.New(s.Unready)}
	}
	_, err := fmt.Fprintln(e.stdout, "ready")
	return err
}

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
	statusJSON statusOutput = "json"
)

func statusCommand(e env) *cobra.Command {
	socket, output, self := "", statusText, false
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what this node's agent enforces, and its problems",
		Long: `Status asks the agent of this node, over its unix socket, what it enforces and since
when, what it has done, and which problems there are: policies that cannot be
understood, broken manifests, a Kubernetes API that cannot be followed, rules that
cannot be kept. In a cluster: kubectl -n kube-system exec POD -- sluice status.

The exit status is 0 if the agent is ready and has no problems, 1 if it is not ready or
has problems, and 2 if no agent answers.

With --self it prints in one line whether the agent in this container is ready, for a
readiness probe. It ignores problems in policies, and an agent in another container does
not count as ready.`,
		Example: `  sluice status
  sluice status -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := status.Ask(cmd.Context(), socket)
			if err != nil {
				return err
			}
			if self {
				return probe(e, s)
			}
			return printStatus(e, s, output)
		},
	}
	cmd.Flags().StringVar(&socket, "socket", status.DefaultSocket, "`PATH` of the agent's socket")
	cmd.Flags().BoolVar(&self, "self", false, "print only whether the agent in this container is ready")
	cmd.Flags().VarP(newChoiceFlag(&output, statusText, statusJSON), "output", "o", "text or json")
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
	case statusText:
		err = s.WriteText(e.stdout)
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

package agent

import (
	"errors"
	"fmt"

	"sluice/cmd/sluice/agent/status"
	"sluice/watch/kube"
)

// startupTaint returns the taint to remove from this node's Node, or nil.
func (a *agent) startupTaint() *kube.StartupTaint {
	if a.opts.StartupTaint == "" {
		return nil
	}
	return &kube.StartupTaint{Key: a.opts.StartupTaint, Ready: a.enforces}
}

// enforces reports whether this agent is in the phase enforcing, and is ready.
func (a *agent) enforces() bool {
	return a.is(enforcing) && a.state().Unready() == ""
}

// taintProblems returns a problem if source cannot remove the startup taint.
func (a *agent) taintProblems(source *kube.Source) []status.Problem {
	err := source.StartupTaintError()
	if err == nil {
		return nil
	}
	p := status.Problem{Kind: "taint", Where: a.opts.StartupTaint + " of Node " + a.opts.NodeName, Detail: err.Error()}
	var trouble *kube.APIError
	if errors.As(err, &trouble) {
		p.Detail, p.Hint = fmt.Sprintf("cannot be removed, so that no pods are scheduled here: %v", trouble.Cause), trouble.Hint
	}
	return []status.Problem{p}
}

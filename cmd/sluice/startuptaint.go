package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"

	"sluice/cmd/sluice/telemetry"
	"sluice/watch/kube"
)

func addTaintFlags(fs *pflag.FlagSet, opts *runOptions) {
	fs.Var((*taintFlag)(&opts.startupTaint), "startup-taint", `KEY of a taint that new nodes bear until an agent enforces on them, such as
sluice.dev/agent-not-ready: once ready, the agent removes it from its Node, whatever
its value and effect, for which it must be allowed to patch nodes`)
}

// taintFlag is the key of a taint, or nothing.
type taintFlag string

func (f *taintFlag) String() string { return string(*f) }
func (f *taintFlag) Type() string   { return "KEY" }

func (f *taintFlag) Set(text string) error {
	if strings.ContainsAny(text, "=:") {
		return errors.New("give the key alone, such as sluice.dev/agent-not-ready, without value and effect")
	}
	if wrong := validation.IsQualifiedName(text); text != "" && len(wrong) > 0 {
		return fmt.Errorf("it is not the key of a taint: %s", strings.Join(wrong, "; "))
	}
	*f = taintFlag(text)
	return nil
}

// startupTaint is the taint to remove from this node's Node; nil if there is none.
func (a *agent) startupTaint() *kube.StartupTaint {
	if a.opts.startupTaint == "" {
		return nil
	}
	return &kube.StartupTaint{Key: a.opts.startupTaint, Ready: a.enforces}
}

// enforces reports whether this agent enforces, and is as ready as it tells probes.
func (a *agent) enforces() bool {
	a.mu.Lock()
	now := a.phase
	a.mu.Unlock()
	return now == enforcing && a.state().Unready() == ""
}

// taintProblems are what keeps a source from removing the startup taint.
func (a *agent) taintProblems(source *kube.Source) []telemetry.Problem {
	err := source.StartupTaintError()
	if err == nil {
		return nil
	}
	p := telemetry.Problem{Kind: "taint", Where: a.opts.startupTaint + " of Node " + a.opts.nodeName, Detail: err.Error()}
	var trouble *kube.Trouble
	if errors.As(err, &trouble) {
		p.Detail, p.Mend = fmt.Sprintf("cannot be removed, so that no pods are scheduled here: %v", trouble.Cause), trouble.Mend
	}
	return []telemetry.Problem{p}
}

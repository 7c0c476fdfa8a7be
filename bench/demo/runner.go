package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"sluice/bench/testbed/agenttest"
)

// enforceTimeout bounds the wait for the start of the agent, and the wait for a written policy
// to be in force, which usually takes some tens of milliseconds.
const enforceTimeout = time.Minute

// runner runs the steps in a lab with an agent.
type runner struct {
	*cluster
	*printer
	dir       string // the agent's directory of manifests
	socket    string
	agent     *agenttest.Agent
	keepGoing bool

	shown, probed int
}

// open writes the manifests of namespaces and pods and starts the agent. The caller must stop
// s.agent, unless it is nil.
func (s *runner) open(ctx context.Context, sluice string, verbose bool) error {
	text, err := s.manifests()
	if err != nil {
		return err
	}
	if err := agenttest.WriteFile(s.dir, "cluster.yaml", text); err != nil {
		return fmt.Errorf("write the pods' manifests: %w", err)
	}
	opts := agenttest.Options{
		Sluice: sluice, Node: s.lab.Nodes[0], Dir: s.dir,
		Args: []string{"--node-name", nodeName, "--socket", s.socket, "--on-exit", "remove", "--log-verdicts", "all", "--log-verdicts-rate", "0"},
	}
	if verbose {
		opts.Log = logPrinter{s.printer}
	}
	ctx, cancel := context.WithTimeout(ctx, enforceTimeout)
	defer cancel()
	s.agent, err = agenttest.Start(ctx, opts)
	return err
}

// logPrinter prints the agent's log between the demo's own lines.
type logPrinter struct{ *printer }

func (e logPrinter) Write(line []byte) (int, error) {
	e.printf("%s", e.paint(faint, "  sluice: "+strings.TrimSuffix(string(line), "\n")))
	return len(line), nil
}

// runSteps runs and prints the steps, and returns the number of wrong probes.
func (s *runner) runSteps(ctx context.Context, steps []step) (wrong int, err error) {
	probes := s.probes()
	for i, st := range steps {
		expectations, err := st.parseExpectations()
		if err != nil {
			return wrong, err
		}
		took, err := s.apply(ctx, st)
		if err != nil {
			return wrong, fmt.Errorf("step %s: %w", st.name, err)
		}
		if err := s.printStep(st, i+1, len(steps), took); err != nil {
			return wrong, err
		}
		result := compare(probeAll(ctx, probes, s.agent, s.agent.Mark()), expectations)
		if ctx.Err() != nil {
			return wrong, ctx.Err()
		}
		s.result(st, s.cluster, result)
		s.shown++
		s.probed += len(probes)
		wrong += len(result.wrong)
		if wrong > 0 && !s.keepGoing {
			break
		}
	}
	return wrong, nil
}

// apply saves the policies of a step and waits until they are in force: the agent logs when no
// packet can get a verdict of the old policies any more.
func (s *runner) apply(ctx context.Context, st step) (took time.Duration, err error) {
	text, err := st.yaml()
	if err != nil {
		return 0, err
	}
	if len(st.policies) == 0 {
		return 0, nil // no policies: the demo begins in this state
	}
	ctx, cancel := context.WithTimeout(ctx, enforceTimeout)
	defer cancel()
	began := time.Now()
	published, err := s.agent.Save(ctx, "policies.yaml", text)
	if n := published.Number("policies"); err == nil && n != len(st.policies) {
		err = fmt.Errorf("%d policies are in force, not %d: see why with --verbose", n, len(st.policies))
	}
	return time.Since(began), err
}

// comparison is the outcome of a step, compared with its expectations.
type comparison struct {
	outcomes     []outcome
	expectations []expectation
	decided      []int // for each expectation, the number of probes to which it applies
	met          []int // for each expectation, the number of these probes that meet it
	wrong        []fault
}

// fault is the outcome of a probe that did not meet its expectation.
type fault struct {
	outcome
	expected expectation
	what     string
}

func compare(outcomes []outcome, expectations []expectation) comparison {
	j := comparison{outcomes: outcomes, expectations: expectations, decided: make([]int, len(expectations)), met: make([]int, len(expectations))}
	for _, o := range outcomes {
		i := deciding(expectations, o.probe)
		j.decided[i]++
		if what := o.fault(expectations[i].reach); what != "" {
			j.wrong = append(j.wrong, fault{o, expectations[i], what})
		} else {
			j.met[i]++
		}
	}
	return j
}

// fault describes what is wrong with an outcome, or returns an empty string if the outcome is
// as expected. If a probe should not reach its target, a lost packet is not enough: the agent
// must have denied it.
func (o outcome) fault(reach bool) string {
	switch {
	case o.reached() && !reach:
		return "got through"
	case o.reached():
		return ""
	case reach && o.denial != nil:
		return "was denied: " + o.denial.String()
	case reach && o.By != "":
		return "was answered by " + o.By
	case reach:
		return fmt.Sprintf("did not get through: %v", o.Err)
	case o.denial == nil:
		return fmt.Sprintf("did not get through, but the agent did not deny it: %v", o.Err)
	}
	return ""
}

package expect

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter"
	"sluice/filter/policy/explain"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/near"
)

// Cluster is the cluster that tests are about. It must not be used concurrently.
type Cluster struct {
	Inventory *inventory.Inventory
	Explain   *explain.Cluster // explains flows of Inventory
	Namespace string           // namespace of names without one; empty means default
	Coverage  *Coverage        // records what the tests touch; may be nil
}

// Result is the result of a test.
type Result struct {
	Test     *Test
	Flows    int       // number of decided flows
	Failures []Failure // differences from the expectation
	Err      error     // not nil if the verdict about a flow could not be determined
}

// Passed reports whether all flows were decided as expected.
func (r *Result) Passed() bool { return r.Err == nil && len(r.Failures) == 0 }

// Failure is a flow with an unexpected verdict.
type Failure struct {
	Detail  string       // the expected verdict, and the actual one
	Flow    explain.Flow // the first flow whose verdict is not as expected
	Verdict filter.Verdict
	// Explanations explain the flows of a failure. Only the first failures of a test have them.
	Explanations []explain.Explanation
}

// maxExplained bounds the failures of a test that get explanations, with the side effects of their
// advice: computing these takes milliseconds. A report shows no more in full.
const maxExplained = 3

// Run decides the flows of a test.
func (t *Test) Run(c *Cluster) Result {
	run := *c
	if run.Namespace == "" {
		run.Namespace = metav1.NamespaceDefault
	}
	r := Result{Test: t}
	if r.Err = t.Wrong; r.Err != nil {
		return r
	}
	if t.Policy != "" {
		if title := t.policyIn(run.Namespace); !c.Explain.HasPolicy(title) {
			hint := "correct the name, or add it"
			if best, ok := near.Name(title, c.Explain.PolicyTitles()); ok {
				hint = "did you mean " + best + "?"
			}
			r.Err = fmt.Errorf("policy: there is no policy %s in the manifests: %s", title, hint)
			return r
		}
	}
	for _, from := range t.From {
		for _, to := range t.To {
			if err := t.runBetween(&run, from, to, &r); err != nil {
				r.Err = err
				return r
			}
		}
	}
	return r
}

// policyIn returns the title of Policy, whose name may be relative to the given namespace.
func (t *Test) policyIn(namespace string) string {
	if t.Policy == "" || strings.Contains(t.Policy, "/") {
		return t.Policy
	}
	return namespace + "/" + t.Policy
}

// runBetween decides all flows from one end to another, at all ports. It returns an error if there are
// no flows, or if a verdict depends on an unknown address.
func (t *Test) runBetween(c *Cluster, from, to End, r *Result) error {
	source, err := from.find(c, false)
	if err != nil {
		return fmt.Errorf("from: %w", err)
	}
	destination, err := to.find(c, true)
	if err != nil {
		return fmt.Errorf("to: %w", err)
	}
	several := len(source.Ends()) > 1 || len(destination.Ends()) > 1 || from.Name == "" || to.Name == ""
	var unsettled []error
	for _, port := range t.Ports {
		flows, err := c.Inventory.FlowsOf(source, destination, inventory.Question{Port: port, Protocol: t.Protocol})
		if err != nil {
			return err
		}
		if several {
			if flows = c.decidable(flows, len(from.Not)+len(to.Not) > 0); len(flows) == 0 {
				return errors.New("no flow is left to test: policies do not decide about what a pod sends to itself, nor about its own node")
			}
		}
		for _, pair := range pairs(flows) {
			unsettled = append(unsettled, t.check(c, pair, r)...)
		}
	}
	if len(unsettled) > 1 {
		return fmt.Errorf("%w\nand %d more depend on addresses that are not known", unsettled[0], len(unsettled)-1)
	}
	return errors.Join(unsettled...)
}

// decidable returns the flows about which policies decide. It drops flows from a pod to itself, and, if
// own is true, flows between a pod and its own node.
func (c *Cluster) decidable(flows []explain.Flow, own bool) (left []explain.Flow) {
	for _, f := range flows {
		f = c.Inventory.Apart(f)
		itself := f.From.Pod != nil && f.From.Pod == f.To.Pod && len(f.From.Pods) == 1 && !c.replicated(f)
		if reason := c.Inventory.Decide(f).Reason; !itself && reason != filter.SameAddress && (!own || reason != filter.OwnNode) {
			left = append(left, f)
		}
	}
	return left
}

// replicated reports whether the flow's pod stands for all pods of a workload in Git, which may have
// several.
func (c *Cluster) replicated(f explain.Flow) bool {
	return f.From.Assumed && f.From.Workload.Name != ""
}

// pairs groups flows that have the same two ends, and differ in the address family.
func pairs(flows []explain.Flow) (all [][]explain.Flow) {
	for i, f := range flows {
		if i > 0 && f.From == flows[i-1].From && f.To == flows[i-1].To {
			all[len(all)-1] = append(all[len(all)-1], f)
			continue
		}
		all = append(all, []explain.Flow{f})
	}
	return all
}

// check decides the flows between two ends, and adds a failure to r if a verdict is not as expected. It
// returns an error for each flow whose verdict depends on an unknown address.
func (t *Test) check(c *Cluster, flows []explain.Flow, r *Result) (unsettled []error) {
	var failure *Failure
	for _, f := range flows {
		r.Flows++
		v := c.Inventory.Decide(f)
		c.Coverage.touch(c, f, v)
		if err := c.settled(f, v); err != nil {
			unsettled = append(unsettled, err)
			continue
		}
		if flaw := t.flaw(c, f, v); flaw != "" && failure == nil {
			failure = &Failure{Detail: flaw, Flow: f, Verdict: v}
		}
	}
	if failure == nil {
		return unsettled
	}
	if len(r.Failures) < maxExplained {
		failure.Explanations = c.Explain.ExplainFlows(flows)
	}
	r.Failures = append(r.Failures, *failure)
	return unsettled
}

// settled returns an error if the verdict about a flow depends on an unknown address. The error names
// what to add so that the address becomes known.
func (c *Cluster) settled(f explain.Flow, v filter.Verdict) error {
	if !f.From.Assumed && !f.To.Assumed {
		return nil
	}
	of, ranges := c.dependsOn(f, v)
	if of == nil {
		return nil
	}
	other := filter.Allow
	if v.Action == filter.Allow {
		other = filter.Deny
	}
	text := fmt.Sprintf("%s to %s, %s: it depends on the address of %s, which is not known: ", f.From.Name, f.To.Name, portText(f), of.Name)
	in := near.List(ranges, 3, " or ")
	if of.Node {
		return fmt.Errorf("%sadd its Node, or the pod with its status: with an address in %s it is %s, otherwise %s", text, in, other, v.Action)
	}
	return fmt.Errorf("%sgive the range of the pods: with --pod-cidr (podCIDRs in the file) in %s it is %s, with a range outside of it %s", text, in, other, v.Action)
}

// dependsOn returns an end whose unknown address affects the verdict about a flow, and the ranges of
// addresses for which the verdict differs from v. It returns nil if there is no such end.
func (c *Cluster) dependsOn(f explain.Flow, v filter.Verdict) (of *explain.End, ranges []string) {
	for _, a := range c.Inventory.Elsewhere(f) {
		if c.Inventory.Decide(a.Flow).Action == v.Action {
			continue
		}
		end := f.From
		if a.To {
			end = f.To
		}
		if of == nil {
			of = end
		}
		if text := a.Range.String(); of == end && !slices.Contains(ranges, text) {
			ranges = append(ranges, text)
		}
	}
	return of, ranges
}

func portText(f explain.Flow) string {
	if !f.Key.Protocol.HasPorts() {
		return f.Key.Protocol.String()
	}
	return fmt.Sprintf("%s %d", f.Key.Protocol, f.Key.Port)
}

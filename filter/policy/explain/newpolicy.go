package explain

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/netpol"
)

// generated lists the keys of labels that controllers add to pods. The value of such a label
// identifies a single pod, or one version or run of a workload, so policies should not use it.
var generated = []string{
	"pod-template-hash", "controller-revision-hash", "pod-template-generation", "controller-uid", "job-name",
	"batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name", "batch.kubernetes.io/job-completion-index",
	"statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index",
}

// passing lists keys of labels that tools write, and whose values change from release to release.
var passing = []string{"app.kubernetes.io/version", "app.kubernetes.io/managed-by", "helm.sh/chart"}

// labelsOf returns the labels by which policies should select a pod: the labels by which its workload
// selects it. If there are none, these are all labels that are neither generated nor change from
// release to release; and if there are none of those either, all labels that are not generated.
func (c *Cluster) labelsOf(p *policy.Pod) labels.Set {
	without := func(keys []string) labels.Set {
		out := make(labels.Set)
		for k, v := range p.Labels {
			if !slices.Contains(keys, k) {
				out[k] = v
			}
		}
		return out
	}
	stable := without(slices.Concat(generated, passing))
	out := make(labels.Set)
	for k, v := range c.inventory.SelectorOf(p) {
		if stable[k] == v {
			out[k] = v
		}
	}
	switch {
	case len(out) > 0:
		return out
	case len(stable) > 0:
		return stable
	}
	return without(generated)
}

// newPolicy returns a change that adds a policy for the pods of the side's end. If the pod has no
// labels, no policy can select it alone, and the change is a hint.
func (c *Cluster) newPolicy(s *Side, f Flow) *Change {
	end := f.From
	if s.Direction == filter.Ingress {
		end = f.To
	}
	chosen := c.labelsOf(end.Pod)
	if len(chosen) == 0 {
		return &Change{Direction: s.Direction, Hint: fmt.Sprintf("give %s a label, such as app: %s, and ask again: no policy can select it alone without one", end.Name, nameOf(end))}
	}
	p := &policy.Policy{
		Ref: c.freeName(s.Direction, end, f), Tier: policy.NetworkPolicy,
		Subject: policy.Subject{Namespace: end.Pod.Namespace, Pods: labels.SelectorFromSet(chosen)},
	}
	rule := policy.Rule{Action: policy.Accept, Peers: []policy.Peer{c.peerOf(s.Direction, f, p.Ref.String(), nil)}, Ports: portsOf(f.Key)}
	p.Isolates[s.Direction], p.Rules[s.Direction] = true, []policy.Rule{rule}
	return &Change{Policy: p.Ref, Direction: s.Direction, New: p, Rule: rule, Notes: portless(f, "ports")}
}

// maxName bounds the length of the ends' names in the name of a new policy.
const maxName = 100

// freeName returns a name for a new policy, such as "pay-to-vault-8443", that no existing policy has.
func (c *Cluster) freeName(d filter.Direction, end *End, f Flow) policy.Ref {
	peer, list := peerEnd(d, f)
	name := nameOf(end) + "-" + list + "-" + nameOf(peer)
	if f.Key.Transport == filter.Ported {
		name += fmt.Sprint("-", f.Key.Port)
	}
	ref := netpol.Ref(end.Pod.Namespace, name)
	for i := 2; c.policies[ref.String()] != nil; i++ {
		ref.Name = fmt.Sprint(name, "-", i)
	}
	return ref
}

// nameOf returns the name of an end in a form that is valid in the name of an object.
func nameOf(e *End) string {
	name := e.Name
	switch {
	case e.Workload.Name != "":
		name = e.Workload.Name
	case e.Pod != nil:
		name = e.Pod.Name
	case e.Range != nil && e.Range.Prefix.Bits() == 0:
		name = "world"
	case e.Range != nil:
		name = e.Range.Prefix.String()
	}
	name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(name))
	for strings.Contains(name, "--") {
		name = strings.ReplaceAll(name, "--", "-") // an address such as fd00::1 becomes fd00--1
	}
	return strings.Trim(name[:min(len(name), maxName)], "-")
}

// namespaceOf returns the namespace of a policy with the name "namespace/name".
func namespaceOf(name string) string {
	namespace, _, _ := strings.Cut(name, "/")
	return namespace
}

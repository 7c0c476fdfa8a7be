package explain

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/netpol"
)

// Change is a suggestion to the user: an addition to a policy, after which one side (egress or
// ingress) allows the flow. It allows as few other flows as the API can express.
type Change struct {
	Policy policy.Ref
	Field  string // the list to add to, as in "spec.ingress[0].from"
	// Add is the peer, port or rule to add, in the form of the API.
	Add any
	// Before is the rule that the addition must come before. It is nil if the order of rules
	// has no meaning. If Before is set, Rule is the rule to add.
	Before *filter.Rule
	Rule   policy.Rule
	Notes  []string // what else the addition allows, and other ways to allow the flow
	// Problem is set if an addition would not take effect. The problem must then be corrected
	// instead, and Field and Add are empty.
	Problem *policy.Problem
}

// generated lists the keys of labels that controllers add to pods. The value of such a label
// identifies a single pod, or one version or run of a workload, so policies should not use it.
var generated = []string{
	"pod-template-hash", "controller-revision-hash", "pod-template-generation", "controller-uid", "job-name",
	"batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name", "batch.kubernetes.io/job-completion-index",
	"statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index",
}

// change returns the smallest change that allows the flow. If the nearest rule has only one
// mismatch, the change is an addition to this rule; otherwise it is a new rule.
func (c *Cluster) change(s *Side, f Flow) *Change {
	if p := c.inTheWay(s); p != nil {
		return &Change{Policy: c.refOf(s.Nearest[0].Rule.Policy), Problem: p}
	}
	if len(s.Nearest) > 0 && len(s.Nearest[0].Mismatches) == 1 {
		r := &s.Nearest[0]
		switch {
		case r.mismatches("port") && f.Key.Transport == filter.Ported:
			return &Change{Policy: c.refOf(r.Rule.Policy), Field: ruleField(r.Rule) + ".ports", Add: netpol.WritePort(portOf(f.Key))}
		case r.mismatches("peer"):
			list := ".from"
			if s.Direction == filter.Egress {
				list = ".to"
			}
			return &Change{Policy: c.refOf(r.Rule.Policy), Field: ruleField(r.Rule) + list, Add: netpol.WritePeer(c.peerOf(s, f, r))}
		}
	}
	var nearest *RuleMatch
	name := ""
	if len(s.Nearest) > 0 {
		nearest, name = &s.Nearest[0], s.Nearest[0].Rule.Policy
	} else if i := slices.IndexFunc(s.Policies, c.takesRules); i >= 0 {
		name = s.Policies[i]
	}
	if name == "" {
		p := c.problems[s.Policies[0]]
		if len(p) == 0 {
			return nil
		}
		return &Change{Policy: c.refOf(s.Policies[0]), Problem: &p[0]}
	}
	return &Change{Policy: c.refOf(name), Field: "spec." + s.Direction.String(), Add: netpol.WriteRule(s.Direction, c.ruleOf(s, f, name, nearest)), Notes: portless(f, "ports")}
}

// inTheWay returns the problem of the nearest rule (a malformed port or peer), or nil if it has
// none. The user must correct this problem before an addition to the rule can help, because the
// API server, and an agent that reads manifests, refuse a policy with a malformed item. Often
// the correction alone is enough: for example, the rule names the right port, but in quotes.
func (c *Cluster) inTheWay(s *Side) *policy.Problem {
	if len(s.Nearest) == 0 {
		return nil
	}
	r := &s.Nearest[0]
	part := ruleField(r.Rule)
	if r.mismatches("port") {
		part += ".ports"
	}
	return c.problemOf(r.Rule, part)
}

// refOf returns the reference of a policy that a verdict names.
func (c *Cluster) refOf(name string) policy.Ref {
	if p := c.policies[name]; p != nil {
		return p.Ref
	}
	return c.problems[name][0].Policy
}

// takesRules reports whether a rule that is added to the policy would take effect.
func (c *Cluster) takesRules(name string) bool {
	return c.policies[name] != nil && len(c.problems[name]) == 0
}

func (c *Cluster) ruleOf(s *Side, f Flow, name string, nearest *RuleMatch) policy.Rule {
	r := RuleMatch{Rule: filter.Rule{Policy: name}}
	if nearest != nil {
		r = *nearest
	}
	out := policy.Rule{Peers: []policy.Peer{c.peerOf(s, f, &r)}}
	if f.Key.Transport == filter.Ported {
		out.Ports = []policy.PortRange{portOf(f.Key)}
	}
	return out
}

func portOf(k filter.Key) policy.PortRange {
	return policy.PortRange{Protocol: k.Protocol, Low: k.Port, High: k.Port}
}

// peerOf returns a peer that matches the other end of the flow. If that end is a pod, the peer
// selects it by those of its labels whose keys the nearest rule uses too. If the pod has no such
// label, the peer selects it by all labels whose keys are not in the list generated. If the end
// is not a pod, the peer is a block with the end's address.
func (c *Cluster) peerOf(s *Side, f Flow, nearest *RuleMatch) policy.Peer {
	peer, addr := f.To, f.Key.DstAddr()
	if s.Direction == filter.Ingress {
		peer, addr = f.From, f.Key.SrcAddr()
	}
	if peer.Pod == nil {
		return policy.Peer{Block: &policy.Block{CIDR: netip.PrefixFrom(addr, addr.BitLen())}}
	}
	chosen := make(map[string]string)
	for _, l := range nearest.Mismatches {
		for _, k := range l.keys {
			if v, ok := peer.Pod.Labels[k]; ok {
				chosen[k] = v
			}
		}
	}
	if len(chosen) == 0 {
		for k, v := range peer.Pod.Labels {
			if !slices.Contains(generated, k) {
				chosen[k] = v
			}
		}
	}
	p := policy.Peer{Pods: labels.SelectorFromSet(chosen)}
	if of := c.policies[nearest.Rule.Policy]; of.Tier != policy.NetworkPolicy || of.Subject.Namespace != peer.Pod.Namespace {
		p.Namespaces = labels.SelectorFromSet(labels.Set{corev1.LabelMetadataName: peer.Pod.Namespace})
	}
	return p
}

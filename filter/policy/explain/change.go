package explain

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sluice/filter"
	"sluice/filter/policy"
)

// Change is one addition to one policy that makes a side allow the flow. It
// allows as little else as the API can say. Whether it is wise is not for Sluice
// to tell.
type Change struct {
	Policy string // "namespace/name"
	Field  string // the list to add to, as in "spec.ingress[0].from"
	// Add is what to add: a NetworkPolicyPeer, a NetworkPolicyPort, or a
	// NetworkPolicyIngressRule or EgressRule.
	Add any
	// Problem is what must be mended instead, where nothing that is added to the
	// policies that isolate the pod would be in force; Field and Add are empty then.
	Problem *policy.Problem
}

// generated are labels that controllers give to pods, which change with each
// version of them and are nothing to write into a policy.
var generated = []string{
	"pod-template-hash", "controller-revision-hash", "pod-template-generation", "controller-uid", "job-name",
	"batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name", "batch.kubernetes.io/job-completion-index",
	"statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index",
}

// change finds the least that must be added: to the nearest rule, if it lacks one
// thing, and else a rule.
func (c *Cluster) change(s *Side, f Flow) *Change {
	if p := c.inTheWay(s); p != nil {
		return &Change{Policy: s.Nearest[0].Rule.Policy, Problem: p}
	}
	if len(s.Nearest) > 0 && len(s.Nearest[0].Lacks) == 1 {
		r := &s.Nearest[0]
		switch {
		case r.lacks("port") && f.Key.Transport == filter.Ported:
			return &Change{Policy: r.Rule.Policy, Field: ruleField(r.Rule) + ".ports", Add: portOf(f.Key)}
		case r.lacks("peer"):
			list := ".from"
			if s.Direction == filter.Egress {
				list = ".to"
			}
			return &Change{Policy: r.Rule.Policy, Field: ruleField(r.Rule) + list, Add: c.peerOf(s, f, r)}
		}
	}
	var nearest *Reading
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
		return &Change{Policy: s.Policies[0], Problem: &p[0]}
	}
	return &Change{Policy: name, Field: "spec." + s.Direction.String(), Add: c.ruleOf(s, f, name, nearest)}
}

// inTheWay returns what must be corrected in the nearest rule before anything is added:
// the API server refuses an item beside one that cannot be understood, and so does an
// agent that follows the file. A port in quotes is all that has to change then.
func (c *Cluster) inTheWay(s *Side) *policy.Problem {
	if len(s.Nearest) == 0 {
		return nil
	}
	r := &s.Nearest[0]
	part := ruleField(r.Rule)
	if r.lacks("port") {
		part += ".ports"
	}
	return c.problemOf(r.Rule, part)
}

// takesRules says whether a rule that is added to the policy is in force.
func (c *Cluster) takesRules(name string) bool {
	return c.policies[name] != nil && len(c.problems[name]) == 0
}

func (c *Cluster) ruleOf(s *Side, f Flow, name string, nearest *Reading) any {
	r := Reading{Rule: filter.Rule{Policy: name}}
	if nearest != nil {
		r = *nearest
	}
	peers := []networkingv1.NetworkPolicyPeer{c.peerOf(s, f, &r)}
	var ports []networkingv1.NetworkPolicyPort
	if f.Key.Transport == filter.Ported {
		ports = append(ports, portOf(f.Key))
	}
	if s.Direction == filter.Egress {
		return networkingv1.NetworkPolicyEgressRule{To: peers, Ports: ports}
	}
	return networkingv1.NetworkPolicyIngressRule{From: peers, Ports: ports}
}

func portOf(k filter.Key) networkingv1.NetworkPolicyPort {
	proto, port := corev1.Protocol(k.Protocol.String()), intstr.FromInt32(int32(k.Port))
	return networkingv1.NetworkPolicyPort{Protocol: &proto, Port: &port}
}

// peerOf describes the flow's peer: a pod by its labels, of which those that the
// nearest rule looks at will do; anything else by its address.
func (c *Cluster) peerOf(s *Side, f Flow, nearest *Reading) networkingv1.NetworkPolicyPeer {
	peer, addr := f.To, f.Key.DstAddr()
	if s.Direction == filter.Ingress {
		peer, addr = f.From, f.Key.SrcAddr()
	}
	if peer.Pod == nil {
		return networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: netip.PrefixFrom(addr, addr.BitLen()).String()}}
	}
	chosen := make(map[string]string)
	for _, l := range nearest.Lacks {
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
	p := networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: chosen}}
	if c.policies[nearest.Rule.Policy].Namespace != peer.Pod.Namespace {
		p.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: peer.Pod.Namespace}}
	}
	return p
}

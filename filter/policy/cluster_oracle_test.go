package policy_test

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/filter"
	"sluice/filter/policy"
)

// This file is the oracle of ClusterNetworkPolicy. It implements the text of the API: for
// every flow, it tries one rule after the other.

// ordered returns the policies of a tier in their order: "policies with lower priority
// values ... are checked before policies with higher priority values". The API leaves the
// order of equal priorities open: here it is that of the names.
//
// A policy of a tier that the agent does not know is the first of the Admin tier, so that no
// earlier rule passes a flow on to the next tier. Its rules accept nothing or deny everything.
func (c *cluster) ordered(t v1beta1.Tier) []*v1beta1.ClusterNetworkPolicy {
	list := slices.DeleteFunc(slices.Clone(c.Cluster), func(p *v1beta1.ClusterNetworkPolicy) bool {
		return (p.Spec.Tier == v1beta1.BaselineTier) != (t == v1beta1.BaselineTier)
	})
	slices.SortFunc(list, func(a, b *v1beta1.ClusterNetworkPolicy) int {
		return cmp.Or(cmp.Compare(priorityOf(a), priorityOf(b)), cmp.Compare(a.Name, b.Name))
	})
	return list
}

func priorityOf(p *v1beta1.ClusterNetworkPolicy) int32 {
	if !knownTier(p) {
		return -1
	}
	return p.Spec.Priority
}

func knownTier(p *v1beta1.ClusterNetworkPolicy) bool {
	return p.Spec.Tier == v1beta1.AdminTier || p.Spec.Tier == v1beta1.BaselineTier
}

// tierJudgement is what a tier of ordered rules does with a flow: the first rule that
// matches, with its action. concerns reports that the tier has a rule for the pod in this
// direction, whether or not it matches.
type tierJudgement struct {
	rule     *filter.Rule
	concerns bool
}

func (t tierJudgement) decides() bool { return t.rule != nil && t.rule.Action != policy.Pass }

// judgeTier finds the first rule of a tier that matches the flow. pod is the one that the
// policies select, peer the other end. dst is the destination.
func (c *cluster) judgeTier(t v1beta1.Tier, d filter.Direction, f flow, pod, peer, dst *corev1.Pod) (j tierJudgement) {
	for _, p := range c.ordered(t) {
		rules := clusterRules(p, d)
		selected, malformed := c.subjectSelects(&p.Spec.Subject, pod)
		if !selected || len(rules) == 0 {
			continue // "CNPs with no ingress rules do not affect ingress traffic."
		}
		j.concerns = true
		closed := malformed || !knownTier(p)
		for i, r := range rules {
			rule := &filter.Rule{Policy: p.Name, Name: r.name, Tier: tierOf(t), Direction: d, Index: i}
			matches := r.protocolMatches(f, dst) && c.clusterPeerMatches(r.peers, d, f, peer)
			switch {
			case !closed && !r.malformed():
			case r.action == v1beta1.ClusterNetworkPolicyRuleActionAccept:
				continue // "treat the rule as matching no traffic"
			case malformed:
				*rule = filter.Rule{Policy: p.Name, Tier: tierOf(t), Direction: d} // the verdict names no single rule
				matches, r.action = true, v1beta1.ClusterNetworkPolicyRuleActionDeny
			default:
				matches, r.action = true, v1beta1.ClusterNetworkPolicyRuleActionDeny // "treat the rule as a 'Deny all' rule"
			}
			if matches {
				rule.Action = map[v1beta1.ClusterNetworkPolicyRuleAction]policy.Action{"Accept": policy.Accept, "Deny": policy.Deny, "Pass": policy.Pass}[r.action]
				j.rule = rule
				return j
			}
		}
	}
	return j
}

func tierOf(t v1beta1.Tier) policy.Tier {
	if t == v1beta1.BaselineTier {
		return policy.Baseline
	}
	return policy.Admin
}

// subjectSelects implements ClusterNetworkPolicySubject: "Exactly one field must be set."
// A selector that cannot be understood selects everything.
func (c *cluster) subjectSelects(s *v1beta1.ClusterNetworkPolicySubject, pod *corev1.Pod) (is, malformed bool) {
	switch {
	case (s.Namespaces == nil) == (s.Pods == nil):
		return true, true
	case s.Namespaces != nil && wellFormed(s.Namespaces):
		return selects(s.Namespaces, c.namespaceLabels(pod.Namespace)), false
	case s.Pods != nil && wellFormed(&s.Pods.NamespaceSelector) && wellFormed(&s.Pods.PodSelector):
		return c.namespacedPodMatches(s.Pods, pod), false
	}
	// If one of the two selectors in Pods is malformed, the other one still restricts the pods.
	if s.Pods == nil {
		return true, true
	}
	in := !wellFormed(&s.Pods.NamespaceSelector) || selects(&s.Pods.NamespaceSelector, c.namespaceLabels(pod.Namespace))
	return in && (!wellFormed(&s.Pods.PodSelector) || selects(&s.Pods.PodSelector, pod.Labels)), true
}

func wellFormed(s *metav1.LabelSelector) bool {
	_, err := metav1.LabelSelectorAsSelector(s)
	return err == nil
}

func (c *cluster) namespacedPodMatches(s *v1beta1.NamespacedPod, pod *corev1.Pod) bool {
	return selects(&s.NamespaceSelector, c.namespaceLabels(pod.Namespace)) && selects(&s.PodSelector, pod.Labels)
}

// clusterRule is an ingress or egress rule. In the peers of an ingress rule, only Namespaces or
// Pods is set.
type clusterRule struct {
	name      string
	action    v1beta1.ClusterNetworkPolicyRuleAction
	peers     []v1beta1.ClusterNetworkPolicyEgressPeer
	protocols []v1beta1.ClusterNetworkPolicyProtocol
}

func clusterRules(p *v1beta1.ClusterNetworkPolicy, d filter.Direction) (rules []clusterRule) {
	if d == filter.Egress {
		for _, r := range p.Spec.Egress {
			rules = append(rules, clusterRule{r.Name, r.Action, r.To, r.Protocols})
		}
		return rules
	}
	for _, r := range p.Spec.Ingress {
		out := clusterRule{r.Name, r.Action, nil, r.Protocols}
		for _, peer := range r.From {
			out.peers = append(out.peers, v1beta1.ClusterNetworkPolicyEgressPeer{Namespaces: peer.Namespaces, Pods: peer.Pods})
		}
		rules = append(rules, out)
	}
	return rules
}

// malformed reports whether the rule must fail closed: "If an implementation sees no fields
// are set then it can infer that the deployed CRD is of an incompatible version with an
// unknown field." The same goes for all that the CRD would refuse.
func (r *clusterRule) malformed() bool {
	accepts := r.action == v1beta1.ClusterNetworkPolicyRuleActionAccept
	known := accepts || r.action == v1beta1.ClusterNetworkPolicyRuleActionDeny || r.action == v1beta1.ClusterNetworkPolicyRuleActionPass
	return !known || len(r.peers) == 0 ||
		slices.ContainsFunc(r.peers, func(p v1beta1.ClusterNetworkPolicyEgressPeer) bool { return malformedPeer(&p, accepts) }) ||
		slices.ContainsFunc(r.protocols, malformedProtocol)
}

// malformedPeer implements "Exactly one of the fields must be set", and "DomainNames is only
// supported for Accept rules."
func malformedPeer(p *v1beta1.ClusterNetworkPolicyEgressPeer, accepts bool) bool {
	fields, bad := 0, false
	field := func(set, wellFormed bool) {
		if set {
			fields++
			bad = bad || !wellFormed
		}
	}
	field(p.Namespaces != nil, p.Namespaces == nil || wellFormed(p.Namespaces))
	field(p.Pods != nil, p.Pods == nil || wellFormed(&p.Pods.NamespaceSelector) && wellFormed(&p.Pods.PodSelector))
	field(p.Nodes != nil, p.Nodes == nil || wellFormed(p.Nodes))
	field(len(p.Networks) > 0, !slices.ContainsFunc(p.Networks, malformedNetwork))
	field(len(p.DomainNames) > 0, accepts)
	return fields != 1 || bad
}

// malformedNetwork implements "isCIDR(self) && cidr(self) == cidr(self).masked()".
func malformedNetwork(n v1beta1.CIDR) bool {
	p, err := netip.ParsePrefix(string(n))
	return err != nil || p.Addr().Is4In6() || p.Masked() != p
}

// clusterPeerMatches implements "If any element matches the source of incoming traffic" and
// the same for destinations.
func (c *cluster) clusterPeerMatches(peers []v1beta1.ClusterNetworkPolicyEgressPeer, d filter.Direction, f flow, pod *corev1.Pod) bool {
	addr := f.Dst
	if d == filter.Ingress {
		addr = f.Src
	}
	return slices.ContainsFunc(peers, func(p v1beta1.ClusterNetworkPolicyEgressPeer) bool {
		switch {
		case p.Namespaces != nil: // "Note that host-networked pods are not included"
			return pod != nil && selects(p.Namespaces, c.namespaceLabels(pod.Namespace))
		case p.Pods != nil:
			return pod != nil && c.namespacedPodMatches(p.Pods, pod)
		case p.Nodes != nil: // "matching on the IPs present in the node.Status.Addresses field of the node"
			return slices.ContainsFunc(c.Nodes, func(n *corev1.Node) bool {
				return selects(p.Nodes, n.Labels) && slices.Contains(nodeObjectAddrs(n), addr)
			})
		}
		// "cluster-internal traffic will be checked against the rule as well"
		return slices.ContainsFunc(p.Networks, func(n v1beta1.CIDR) bool {
			in, _ := cidrContains(string(n), addr)
			return in
		})
	})
}

func nodeObjectAddrs(n *corev1.Node) []netip.Addr {
	var texts []string
	for _, a := range n.Status.Addresses {
		texts = append(texts, a.Address)
	}
	return parseAddrs(texts)
}

// protocolMatches implements the field "protocols": "If unspecified, protocol-specific
// attributes will not be used to match traffic." If it is specified, only traffic with ports
// can match.
func (r *clusterRule) protocolMatches(f flow, dst *corev1.Pod) bool {
	return len(r.protocols) == 0 || f.Transport == filter.Ported && slices.ContainsFunc(r.protocols, func(p v1beta1.ClusterNetworkPolicyProtocol) bool {
		switch {
		case p.TCP != nil:
			return f.Protocol == filter.TCP && destinationMatches(p.TCP.DestinationPort, f)
		case p.UDP != nil:
			return f.Protocol == filter.UDP && destinationMatches(p.UDP.DestinationPort, f)
		case p.SCTP != nil:
			return f.Protocol == filter.SCTP && destinationMatches(p.SCTP.DestinationPort, f)
		}
		// "selects a destination port on a pod based on the ContainerPort name"
		number, ok := namedPort(dst, p.DestinationNamedPort, corev1.Protocol(f.Protocol.String()))
		return ok && number == int32(f.Port)
	})
}

func destinationMatches(p *v1beta1.Port, f flow) bool {
	switch {
	case p == nil:
		return false
	case p.Range != nil:
		return p.Range.Start <= int32(f.Port) && int32(f.Port) <= p.Range.End
	}
	return p.Number == int32(f.Port)
}

// malformedProtocol implements "Exactly one field must be set", also within tcp, udp, sctp
// and destinationPort.
func malformedProtocol(p v1beta1.ClusterNetworkPolicyProtocol) bool {
	fields, bad := 0, false
	port := func(set bool, p func() *v1beta1.Port) {
		if set {
			fields++
			bad = bad || malformedDestination(p())
		}
	}
	port(p.TCP != nil, func() *v1beta1.Port { return p.TCP.DestinationPort })
	port(p.UDP != nil, func() *v1beta1.Port { return p.UDP.DestinationPort })
	port(p.SCTP != nil, func() *v1beta1.Port { return p.SCTP.DestinationPort })
	if name := p.DestinationNamedPort; name != "" {
		fields++
		bad = bad || malformedPortName(name)
	}
	return fields != 1 || bad
}

func malformedDestination(p *v1beta1.Port) bool {
	if p == nil || (p.Number != 0) == (p.Range != nil) {
		return true
	}
	if p.Range != nil { // "The start must be less than End."
		return p.Range.Start < 1 || p.Range.End > 65535 || p.Range.Start >= p.Range.End
	}
	return p.Number < 1 || p.Number > 65535
}

// judgeOwnNode judges what a pod sends to its own node, even if a pod claims the address of the
// node. Only ordered rules can deny it: NetworkPolicies do not apply. But if they isolate the
// pod, the tier Baseline is not evaluated.
func (c *cluster) judgeOwnNode(f flow) (side sideJudgement) {
	src := c.podAt(f.Src)
	if src == nil {
		return side
	}
	admin := c.judgeTier(v1beta1.AdminTier, filter.Egress, f, src, nil, nil)
	if side.add(admin); admin.decides() || len(c.isolating(filter.Egress, src)) > 0 {
		return side
	}
	side.add(c.judgeTier(v1beta1.BaselineTier, filter.Egress, f, src, nil, nil))
	return side
}

// add adds what a tier does with the flow.
func (s *sideJudgement) add(t tierJudgement) {
	s.Concerned = s.Concerned || t.concerns
	switch {
	case t.rule == nil:
	case t.rule.Action == policy.Pass && t.rule.Tier == policy.Admin:
		s.Passed = t.rule
	default:
		s.Ordered = t.rule
	}
}

// ruleText writes a rule of a verdict in messages.
func ruleText(r *filter.Rule) string {
	if r == nil {
		return "no rule"
	}
	return fmt.Sprintf("%+v", *r)
}
